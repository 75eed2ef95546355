"""Phi-3 and Phi-4 (mini): query, key and value are one tensor, and so are gate and up.

Source: `transformers.models.phi3`. The releases for 128k tokens scale their rotary frequencies by
`longrope`, with other factors for sequences longer than the original context. Layertap has only the
factors for shorter ones, so longer prompts count as overlong.
"""

from layertap.model.config import DecoderConfig
from layertap.model.config_file import ROPE_KEYS, ConfigFile
from layertap.model.families.common import require_activation, window_everywhere


def read_phi3(file: ConfigFile) -> DecoderConfig:
    """The shape from a `config.json` of model_type phi3."""
    file = file.with_defaults(max_position_embeddings=4096, original_max_position_embeddings=4096, rms_norm_eps=1e-5)
    # As in transformers, the number beside the rope settings counts, not the one inside them.
    original = {"original_max_position_embeddings": file.raw["original_max_position_embeddings"]}
    scaling = {key: {**file.mapping(key), **original} for key in ROPE_KEYS if file.mapping(key)}
    file = ConfigFile(file.path, {**file.raw, **scaling})
    sizes, rope = file.sizes(), file.rope()
    if rope.kind == "yarn":  # here transformers takes this name as an old spelling of longrope
        file.refuse("asks for rope scaling of type 'yarn', which is longrope in a phi3; write longrope")
    share = max(
        [float(file.mapping(key).get("partial_rotary_factor", 0)) for key in ROPE_KEYS]
        + [float(file.raw.get("partial_rotary_factor") or 0)]
    )
    return DecoderConfig(
        **sizes,
        rope_theta=rope.theta,
        rope=None if rope.kind == "default" else rope,
        rotary_dim=int(sizes["head_dim"] * share) if 0 < share < 1 else None,
        tie_word_embeddings=file.flag("tie_word_embeddings", False),
        model_type="phi3",
        qkv_bias=False,
        fused=True,
        activation=require_activation(file, "silu"),
        windows=window_everywhere(file),
    )
