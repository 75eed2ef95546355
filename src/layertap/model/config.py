"""The shape of a decoder: everything in a checkpoint's `config.json` that decides its activations.

One class serves all families. A field that only some families use has a default that switches it
off, so Qwen 2.5 is the plain case. `families/` reads each family's `config.json` into it, and
refuses features that no field describes: running without them would give plausible but wrong
activations. This module does not import JAX.
"""

from dataclasses import dataclass
from typing import Literal

from layertap.core.taps import Site
from layertap.errors import ModelError

Activation = Literal["silu", "gelu_tanh"]
RopeKind = Literal["default", "linear", "llama3", "yarn", "longrope"]


@dataclass(frozen=True)
class Rope:
    """Rotary positions: the base, and how its frequencies are scaled (frequencies.py)."""

    theta: float = 10_000.0
    kind: RopeKind = "default"
    factor: float = 1.0
    original_context: int = 0
    """How many positions the model knew before scaling."""
    low_frequency_factor: float = 1.0
    high_frequency_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    attention_factor: float = 1.0
    """The factor for cosines and sines."""
    factors: tuple[float, ...] = ()
    """One for each pair of a head's values; longrope only."""

    def __post_init__(self) -> None:
        """Refuse a base that float32 cannot hold."""
        if not 2.0**-126 <= self.theta < 2.0**127:
            raise ModelError(f"config.json: rope_theta {self.theta} is not a number that float32 can hold")


@dataclass(frozen=True)
class DecoderConfig:
    """A decoder's shape, and the special features of its family."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    rms_norm_eps: float
    rope_theta: float
    tie_word_embeddings: bool
    model_type: str = "qwen2"
    """The family's name in transformers."""
    context: int | None = None
    """The most tokens in a sequence: `max_position_embeddings`."""
    rope: Rope | None = None
    """How rotary positions are scaled; None: not at all."""
    local_rope: Rope | None = None
    """Rotary positions of layers with a window; None: the same as in other layers."""
    rotary_dim: int | None = None
    """How many of a head's values are rotated; None: all."""
    qkv_bias: bool = True
    output_bias: bool = False
    mlp_bias: bool = False
    fused: bool = False
    """Whether query, key and value are one tensor in the checkpoint, and gate and up another."""
    head_norms: bool = False
    """A norm on each head's queries and keys."""
    offset_norms: bool = False
    """Whether norms store their scale minus 1."""
    norms_after: bool = False
    """Whether norms also follow attention and MLP, before the add."""
    activation: Activation = "silu"
    embedding_scale: float = 1.0
    query_scale: float | None = None
    """The factor for queries; None: head_dim ** -0.5."""
    score_cap: float | None = None
    """Attention scores s become cap * tanh(s / cap)."""
    windows: tuple[int | None, ...] = ()
    """For each layer, how many tokens a token sees, itself included; None: all. Empty: no layer has
    a window."""

    def __post_init__(self) -> None:
        """Refuse shapes that no attention layer can have."""
        if self.num_attention_heads % self.num_key_value_heads:
            raise ModelError(
                f"config.json: {self.num_attention_heads} attention heads cannot share"
                f" {self.num_key_value_heads} key-value heads evenly"
            )
        if self.head_dim <= 0 or self.head_dim % 2:
            raise ModelError(
                f"config.json: head_dim {self.head_dim} is not a number of pairs, which rotary embeddings turn"
            )
        Rope(self.rope_theta)

    def width(self, site: Site) -> int:
        """How many numbers a token has at `site`. Nothing else in Layertap knows this."""
        match site:
            case "heads":
                return self.num_attention_heads * self.head_dim
            case "neurons":
                return self.intermediate_size
            case _:
                return self.hidden_size

    def window(self, layer: int) -> int | None:
        """How many tokens a token in this layer sees; None: all before it."""
        return self.windows[layer] if self.windows else None

    def rope_of(self, layer: int) -> Rope:
        """The rotary positions of a layer."""
        if self.local_rope is not None and self.window(layer) is not None:
            return self.local_rope
        return self.rope or Rope(self.rope_theta)


# The published shapes (config.json of Qwen/Qwen2.5-*). Base, Instruct, Coder and Math of one size
# share a shape; rope_theta (1e4 for Math, else 1e6) is read from the checkpoint.
_PUBLISHED = {
    #        hidden, intermediate, layers, heads, kv heads, vocabulary, tied
    "0.5b": (896, 4864, 24, 14, 2, 151_936, True),
    "1.5b": (1536, 8960, 28, 12, 2, 151_936, True),
    "3b": (2048, 11_008, 36, 16, 2, 151_936, True),
    "7b": (3584, 18_944, 28, 28, 4, 152_064, False),
    "14b": (5120, 13_824, 48, 40, 8, 152_064, False),
    "32b": (5120, 27_648, 64, 40, 8, 152_064, False),
    "72b": (8192, 29_568, 80, 64, 8, 152_064, False),
}
_PUBLISHED_CONTEXT = 32_768


def published_config(size: str) -> DecoderConfig:
    """The shape of the Qwen 2.5 release of this size, such as "0.5b"; raises ModelError."""
    if size not in _PUBLISHED:
        raise ModelError(f"no Qwen 2.5 of size {size!r} was published; sizes are {', '.join(_PUBLISHED)}")
    hidden, intermediate, layers, heads, kv_heads, vocabulary, tied = _PUBLISHED[size]
    return DecoderConfig(
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=hidden // heads,
        vocab_size=vocabulary,
        rms_norm_eps=1e-6,
        rope_theta=1e6,
        tie_word_embeddings=tied,
        context=_PUBLISHED_CONTEXT,
    )
