"""A decoder in Flax NNX, up to the last tap and no further: Qwen 2.5 and similar families.

Source: `transformers.models.qwen2.modeling_qwen2`, layer for layer. A field of `DecoderConfig` says
where another family differs, and its file in `families/` names the source. What differs from
transformers, and why:

- No final norm, LM head, key-value cache or layer above the last tap: nothing here generates.
- Query, key and value are one product, gate and up another: fewer, larger products run faster.
- Only matrix products take the compute dtype. The residual stream, norms, softmax, rotary angles
  and biases stay float32, and products sum in float32: in bfloat16 this is closer to the float32
  truth than transformers, which rounds after each step.
- Layers are unrolled, and captured values returned. `sow` under `lax.scan` captures nothing.
- A prefix of all samples can run once, alone (`begin`). Each step then takes its keys and values of
  each layer, and its samples continue from there.

Shapes: B rows, T tokens, H hidden, F intermediate, D head, K key-value heads, G query heads per
key-value head, V vocabulary.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jax.sharding import Mesh
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from layertap.core.taps import Site, Tap
from layertap.model.attention import Attend, Keys, Queries, Shared, attend_flash
from layertap.model.config import DecoderConfig, Rope
from layertap.model.frequencies import inverse_frequencies
from layertap.model.mesh import look_up, whole

Hidden = Float[Array, "B T H"]
Captured = Float[Array, "B T _"]  # as wide as its site

Read = dict[Site, Captured]
KeysOfLayer = Shared | None

# How far into a layer you find a site.
_DEPTH: dict[Site, int] = {
    "residual_in": 0,
    "attn_in": 0,
    "heads": 1,
    "attn": 2,
    "residual_mid": 2,
    "mlp_in": 3,
    "neurons": 4,
    "mlp": 5,
    "residual": 5,
}

# Two kinds of products are not summed in parts. The partial sums of wider ones would not fit the
# caches (gate and up: 8 % of a layer's time in 0.5B, a third in 1.5B). Those of others would take
# more than 1 MiB a token.
_WIDEST = 2**13
_PARTIAL_SUMS = 2**18


@dataclass(frozen=True)
class ForwardPlan:
    """How the forward pass runs on a device, and what it returns; hashable, so it can be static."""

    capture_dtype: np.dtype
    """The dtype of returned activations; the residual stream itself stays float32."""
    attend: Attend = attend_flash
    token_block: int | None = 512
    """Tokens that go through projections, norms and MLP at a time; None: all tokens."""
    terms: int | None = 256
    """The most terms of a float32 product that are added one by one; None: the backend decides."""
    widen: bool = False
    """Whether to widen a layer's kernels to float32: for processors without bfloat16 products."""
    outputs: Literal["device", "moved", "offloaded"] = "device"
    """Captured activations stay on the device until fetched, or move to pinned host memory after
    the step, or the program itself offloads them there, layer by layer."""
    mesh: Mesh | None = None
    """The devices that share rows and weights (model/mesh.py); None: one device has all."""


class Projection(nnx.Module):
    """`x @ kernel + bias`: operands in the kernel's dtype, sum and result in float32."""

    def __init__(self, inputs: int, outputs: int, dtype: DTypeLike, *, bias: bool = False) -> None:
        self.kernel = nnx.Param(jnp.zeros((inputs, outputs), dtype))
        self.bias = nnx.Param(jnp.zeros((outputs,), jnp.float32)) if bias else None

    def __call__(self, x: Float[Array, "B T I"], terms: int | None) -> Float[Array, "B T O"]:
        """Project the last dimension; `terms` as in the plan."""
        product = multiply(x, self.kernel[...], terms)
        return product if self.bias is None else product + self.bias[...][None, None, :]


class RMSNorm(nnx.Module):
    """Root-mean-square norm (Zhang and Sennrich 2019), in float32; `Qwen2RMSNorm`."""

    def __init__(self, size: int, epsilon: float) -> None:
        self.scale = nnx.Param(jnp.ones((size,), jnp.float32))
        self.epsilon = epsilon

    def __call__(self, x: Float[Array, "B T ... size"]) -> Float[Array, "B T ... size"]:
        """Normalise the last dimension."""
        mean_square = jnp.mean(jnp.square(x), axis=-1, keepdims=True)
        return x * lax.rsqrt(mean_square + self.epsilon) * jnp.expand_dims(self.scale[...], tuple(range(x.ndim - 1)))


class Attention(nnx.Module):
    """Grouped-query attention with rotary positions; `Qwen2Attention`."""

    def __init__(self, config: DecoderConfig, layer: int, dtype: DTypeLike) -> None:
        self.kv_heads = config.num_key_value_heads
        self.group = config.num_attention_heads // config.num_key_value_heads
        self.head_dim = config.head_dim
        query_size = config.num_attention_heads * config.head_dim
        outputs = query_size + 2 * self.kv_heads * config.head_dim
        self.qkv = Projection(config.hidden_size, outputs, dtype, bias=config.qkv_bias)
        self.out = Projection(query_size, config.hidden_size, dtype, bias=config.output_bias)
        self.query_norm, self.key_norm = (
            RMSNorm(config.head_dim, config.rms_norm_eps) if config.head_norms else None for _ in range(2)
        )
        self.query_scale = config.head_dim**-0.5 if config.query_scale is None else config.query_scale
        self.window = config.window(layer)
        self.score_cap = config.score_cap

    def project(self, x: Hidden, angles: "Rotation", terms: int | None) -> tuple[Queries, Keys, Keys]:
        """Queries (rotated and scaled), keys (rotated) and values, in the kernel's dtype."""
        rows, tokens, _ = x.shape
        dtype = self.qkv.kernel[...].dtype
        heads = self.kv_heads * self.group
        qkv = self.qkv(x, terms).reshape(rows, tokens, heads + 2 * self.kv_heads, self.head_dim)
        query, key, value = jnp.split(qkv, (heads, heads + self.kv_heads), axis=2)
        if self.query_norm is not None and self.key_norm is not None:
            query, key = self.query_norm(query), self.key_norm(key)
        query = (rotate(query, angles) * self.query_scale).astype(dtype)
        query = query.reshape(rows, tokens, self.kv_heads, self.group, self.head_dim)
        return query, rotate(key, angles).astype(dtype), value.astype(dtype)

    def mix(
        self, query: Queries, key: Keys, value: Keys, seg_start: Int[Array, "B T"], attend: Attend, before: KeysOfLayer
    ) -> Queries:
        """The weighted values of each head, including those of a prefix."""
        return attend(query, key, value, seg_start, window=self.window, cap=self.score_cap, shared=before)

    def side_by_side(self, mixed: Queries) -> Captured:
        """The heads' results in the order of the query heads."""
        rows, tokens, *_ = mixed.shape
        return mixed.reshape(rows, tokens, self.kv_heads * self.group * self.head_dim)


class MLP(nnx.Module):
    """SwiGLU; `Qwen2MLP`."""

    def __init__(self, config: DecoderConfig, dtype: DTypeLike) -> None:
        self.gate_up = Projection(config.hidden_size, 2 * config.intermediate_size, dtype, bias=config.mlp_bias)
        self.down = Projection(config.intermediate_size, config.hidden_size, dtype, bias=config.mlp_bias)
        self.activation = config.activation

    def neurons(self, x: Hidden, terms: int | None) -> Captured:
        """The gated neurons: the input of the last product."""
        gate, up = jnp.split(self.gate_up(x, terms), 2, axis=-1)
        return (jax.nn.silu(gate) if self.activation == "silu" else jax.nn.gelu(gate, approximate=True)) * up


class DecoderLayer(nnx.Module):
    """One layer; `Qwen2DecoderLayer`."""

    def __init__(self, config: DecoderConfig, layer: int, dtype: DTypeLike) -> None:
        def norm() -> RMSNorm:
            return RMSNorm(config.hidden_size, config.rms_norm_eps)

        self.attention_norm = norm()
        self.attention = Attention(config, layer, dtype)
        self.after_attention = norm() if config.norms_after else None
        self.mlp_norm = norm()
        self.after_mlp = norm() if config.norms_after else None
        self.mlp = MLP(config, dtype)

    def __call__(
        self,
        x: Hidden,
        angles: "Rotation",
        seg_start: Int[Array, "B T"],
        plan: ForwardPlan,
        sites: tuple[Site, ...],
        before: KeysOfLayer,
        *,
        last: bool,
    ) -> tuple[Hidden, Read, tuple[Keys, Keys] | None]:
        """Run the layer on the residual stream. Returns the new stream, the values at `sites`, and
        keys and values.

        The `last` layer runs only what its sites need. Its stream is then of no use, and there
        may be no keys.
        """
        depth = max((_DEPTH[site] for site in sites), default=0) if last else _DEPTH["residual"]

        def kept(read: Read) -> Read:
            return {site: value.astype(plan.capture_dtype) for site, value in read.items() if site in sites}

        def project(x: Hidden, cosine: Half, sine: Half) -> tuple[tuple[Array, ...], Read]:
            normed = self.attention_norm(x)
            read = kept({"residual_in": x, "attn_in": normed})
            if depth < _DEPTH["heads"]:
                return (), read
            return self.attention.project(normed, (cosine, sine), plan.terms), read

        def after(x: Hidden, mixed: Queries) -> tuple[Hidden, Read]:
            heads = self.attention.side_by_side(mixed)
            read: Read = {"heads": heads}
            if depth >= _DEPTH["attn"]:
                attended = self.attention.out(heads, plan.terms)
                if self.after_attention is not None:
                    attended = self.after_attention(attended)
                x = x + attended
                read |= {"attn": attended, "residual_mid": x}
            if depth >= _DEPTH["mlp_in"]:
                normed = self.mlp_norm(x)
                read["mlp_in"] = normed
            if depth >= _DEPTH["neurons"]:
                neurons = self.mlp.neurons(normed, plan.terms)
                read["neurons"] = neurons
            if depth >= _DEPTH["mlp"]:
                transformed = self.mlp.down(neurons, plan.terms)
                if self.after_mlp is not None:
                    transformed = self.after_mlp(transformed)
                x = x + transformed
                read |= {"mlp": transformed, "residual": x}
            return x, kept(read)

        projected, read = in_blocks(project, plan.token_block, x, *angles)
        if not projected:
            return x, read, None
        query, key, value = projected
        mixed = self.attention.mix(query, key, value, seg_start, plan.attend, before)
        x, read_after = in_blocks(after, plan.token_block, x, mixed)
        return x, read | read_after, (key, value)


class Decoder(nnx.Module):
    """The first layers of a decoder; all zeros until weights are loaded (`weights.load`)."""

    def __init__(self, config: DecoderConfig, num_layers: int, dtype: DTypeLike) -> None:
        self.rotary_dim = config.rotary_dim or config.head_dim
        self.ropes = tuple(config.rope_of(layer) for layer in range(num_layers))
        self.embedding_scale = config.embedding_scale
        self.embedding = nnx.Param(jnp.zeros((config.vocab_size, config.hidden_size), dtype))
        self.layers = nnx.List([DecoderLayer(config, layer, dtype) for layer in range(num_layers)])

    def __call__(
        self,
        token_ids: Int[Array, "B T"],
        seg_start: Int[Array, "B T"],
        prefix: "Prefix | None" = None,
        *,
        taps: tuple[Tap, ...],
        plan: ForwardPlan,
    ) -> tuple[Captured, ...]:
        """The activations at `taps`, in their order; [B, T, width] each, in `plan.capture_dtype`.

        `seg_start[b, t]` is where the sample of token t begins in row b; positions count from
        there. With a `prefix` from `begin`, every sample continues from it.
        """
        return self._run(token_ids, seg_start, prefix, taps, plan)[0]

    def begin(
        self, token_ids: Int[Array, "B T"], seg_start: Int[Array, "B T"], *, taps: tuple[Tap, ...], plan: ForwardPlan
    ) -> tuple[tuple[Captured, ...], "Prefix"]:
        """The same for the tokens of a prefix, plus its keys and values for each layer that has
        any.
        """
        return self._run(token_ids, seg_start, None, taps, plan)

    def _run(
        self,
        token_ids: Int[Array, "B T"],
        seg_start: Int[Array, "B T"],
        prefix: "Prefix | None",
        taps: tuple[Tap, ...],
        plan: ForwardPlan,
    ) -> tuple[tuple[Captured, ...], "Prefix"]:
        # If weights are not float32, operands are rounded far more coarsely than sums.
        if self.embedding[...].dtype != jnp.float32:
            plan = replace(plan, terms=None)
        x = look_up(self.embedding[...], token_ids, plan.mesh).astype(jnp.float32)
        positions = jnp.arange(seg_start.shape[1], dtype=seg_start.dtype)[None, :] - seg_start
        if prefix:
            positions = positions + prefix[0][0].shape[1]
        if self.embedding_scale != 1:
            x = x * self.embedding_scale
        angles = {rope: rotation(positions, self.rotary_dim, rope) for rope in dict.fromkeys(self.ropes)}
        captured: dict[tuple[int, Site], Captured] = {}
        keys: list[tuple[Keys, Keys]] = []
        before = x
        beyond = (len(self.layers), "residual_in")  # the input of a layer that does not run
        for index, layer in enumerate(self.layers):
            sites = tuple(tap.site for tap in taps if tap.layer == index)
            gathered = whole(layer, plan.mesh, after=before)
            before = x
            wide = widened(gathered, after=x) if plan.widen else gathered
            x, read, of_layer = wide(
                x,
                angles[self.ropes[index]],
                seg_start,
                plan,
                sites,
                _of_this_device(prefix, index),
                last=index == len(self.layers) - 1 and beyond not in taps,
            )
            keys += [] if of_layer is None else [of_layer]
            x, read = _handed_over(x, read, plan)
            captured |= {(index, site): value for site, value in read.items()}
        if beyond in taps:
            _, read = _handed_over(x, {"residual_in": x.astype(plan.capture_dtype)}, plan)
            captured |= {(len(self.layers), site): value for site, value in read.items()}
        return tuple(captured[tap.layer, tap.site] for tap in taps), tuple(keys)


Prefix = tuple[tuple[Float[Array, "B P K D"], Float[Array, "B P K D"]], ...]
"""Keys and values of each layer. Each device has its own row, so B is 1 where they are used."""


def _of_this_device(prefix: Prefix | None, layer: int) -> KeysOfLayer:
    """Keys and values of the prefix in a layer; None if the layer needs none."""
    if not prefix or layer >= len(prefix):
        return None
    keys, values = prefix[layer]
    return keys[0], values[0]


def _handed_over(x: Hidden, read: Read, plan: ForwardPlan) -> tuple[Hidden, Read]:
    """The stream and the read values, on their way to the host if the plan says so."""
    if plan.outputs == "offloaded":
        # Read now, or the compiler keeps every layer's stream to read them all at the end.
        x, read = lax.optimization_barrier((x, read))  # type: ignore[no-untyped-call]
        read = jax.device_put(read, jax.memory.Space.Host)
    return x, read


def multiply(x: Float[Array, "B T I"], kernel: Float[Array, "I O"], terms: int | None) -> Float[Array, "B T O"]:
    """Compute `x @ kernel` in float32; with `terms`, in parts whose sums are added pairwise.

    XLA:CPU adds 512 terms one after the other, which is 1.5 times as far from the truth as torch's
    products; 256 terms are as close as torch, and cost 2 to 4 % of a layer's time. The parts are a
    batch of one product: slices of the kernel would be copied at every call.
    """
    precision = lax.Precision.HIGHEST if kernel.dtype == jnp.float32 else lax.Precision.DEFAULT
    x, (rows, tokens, inputs), outputs = x.astype(kernel.dtype), x.shape, kernel.shape[1]
    parts = _parts(inputs, outputs, terms)
    if parts == 1:
        # Without preferred_element_type XLA:CPU widens the kernel at every call, 3 times slower.
        return lax.dot_general(x, kernel, (((2,), (0,)), ((), ())), precision, preferred_element_type=jnp.float32)
    batched = x.reshape(rows * tokens, parts, -1), kernel.reshape(parts, inputs // parts, outputs)
    dimensions = (((2,), (1,)), ((1,), (0,)))
    sums = lax.dot_general(*batched, dimensions, precision, preferred_element_type=jnp.float32)
    return _add_pairwise([sums[part] for part in range(parts)]).reshape(rows, tokens, outputs)


def _parts(inputs: int, outputs: int, terms: int | None) -> int:
    """The number of equal parts of at most `terms` inputs; 1 if their sums cost too much."""
    if terms is None or inputs <= terms:
        return 1
    parts = next(count for count in range(-(-inputs // terms), inputs + 1) if inputs % count == 0)
    return parts if outputs <= _WIDEST and parts * outputs <= _PARTIAL_SUMS else 1


def _add_pairwise(values: list[Array]) -> Array:
    while len(values) > 1:
        values = [sum(values[i + 1 : i + 2], values[i]) for i in range(0, len(values), 2)]
    return values[0]


Blockwise = TypeVar("Blockwise")


def in_blocks(function: Callable[..., Blockwise], block: int | None, *arrays: Float[Array, "B T ..."]) -> Blockwise:
    """Call `function(*arrays)` on `block` tokens at a time, for functions that treat tokens
    separately.

    On CPU this keeps the MLP's intermediate values (5 times as wide as the stream) in the cache:
    bfloat16 products ran 1.5 times as fast (docs/LOG.md). If `block` does not divide the row, the
    largest common divisor is used.
    """
    rows, tokens = arrays[0].shape[:2]
    size = rows * tokens if block is None else math.gcd(block, rows * tokens)
    if size == rows * tokens:
        return function(*arrays)
    blocks = tuple(array.reshape(rows * tokens // size, 1, size, *array.shape[2:]) for array in arrays)
    mapped = lax.map(lambda parts: function(*parts), blocks)
    return cast(Blockwise, jax.tree.map(lambda array: array.reshape(rows, tokens, *array.shape[3:]), mapped))


def widened(layer: DecoderLayer, after: Hidden) -> DecoderLayer:
    """The layer in float32, not before `after` is known: only one layer is twice as large.

    Its products are then those of `--compute_dtype float32` on bfloat16 weights, and only the
    result is rounded. If a processor has no bfloat16 instructions, XLA multiplies bfloat16 at half
    the speed of float32 (docs/LOG.md).
    """
    if layer.mlp.down.kernel[...].dtype == jnp.float32:
        return layer
    layer, _ = lax.optimization_barrier((layer, after))  # type: ignore[no-untyped-call]
    return cast(DecoderLayer, jax.tree.map(lambda leaf: leaf.astype(jnp.float32), layer))


Half = Float[Array, "B T half"]
Rotation = tuple[Half, Half]


def rotation(positions: Int[Array, "B T"], rotary_dim: int, rope: Rope) -> Rotation:
    """Cosines and sines of the rotary angles (Su et al. 2021); `Qwen2RotaryEmbedding`.

    float32 because bfloat16 cannot tell position 257 from 256.
    """
    frequencies = inverse_frequencies(rotary_dim, rope)  # on the host: the device's powers differ in their last bits
    angles = positions.astype(jnp.float32)[:, :, None] * frequencies[None, None, :]
    if rope.attention_factor == 1:
        return jnp.cos(angles), jnp.sin(angles)
    return jnp.cos(angles) * rope.attention_factor, jnp.sin(angles) * rope.attention_factor


def rotate(x: Float[Array, "B T N D"], angles: Rotation) -> Float[Array, "B T N D"]:
    """Rotate each head's pairs (x[i], x[i + D/2]) by the token's angles; `apply_rotary_pos_emb`.

    If there are fewer angles than pairs, the last values of a head stay unchanged.
    """
    cosine, sine = (part[:, :, None, :] for part in angles)
    half = cosine.shape[-1]
    first, second, rest = jnp.split(x, (half, 2 * half), axis=-1)
    turned = [first * cosine - second * sine, second * cosine + first * sine]
    return jnp.concatenate([*turned, rest] if rest.shape[-1] else turned, axis=-1)
