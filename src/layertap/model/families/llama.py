"""Llama 2, 3, 3.1 and 3.2, SmolLM2 and others with a Llama config; and Mistral.

Source: `transformers.models.llama` and `mistral`. Llama has no biases unless its config asks for
them. Mistral's first releases give every layer a window; later ones give none (`sliding_window` is
null). Without the key, the window is 4,096.
"""

from layertap.model.config import DecoderConfig
from layertap.model.config_file import ConfigFile
from layertap.model.families.common import require_activation, window_everywhere


def read_llama(file: ConfigFile) -> DecoderConfig:
    """The shape from a `config.json` of model_type llama."""
    file = file.with_defaults(max_position_embeddings=2048)
    biased = file.flag("attention_bias", False)
    return _read(file, "llama", qkv_bias=biased, output_bias=biased, mlp_bias=file.flag("mlp_bias", False))


def read_mistral(file: ConfigFile) -> DecoderConfig:
    """The shape from one of model_type mistral."""
    file = file.with_defaults(num_key_value_heads=8, max_position_embeddings=131_072, sliding_window=4096)
    return _read(file, "mistral", windows=window_everywhere(file))


def _read(file: ConfigFile, model_type: str, **peculiar: object) -> DecoderConfig:
    rope = file.rope()
    options: dict[str, object] = {"qkv_bias": False} | peculiar
    return DecoderConfig(
        **file.sizes(),
        rope_theta=rope.theta,
        rope=None if rope.kind == "default" else rope,
        tie_word_embeddings=file.flag("tie_word_embeddings", False),
        model_type=model_type,
        activation=require_activation(file, "silu"),
        **options,  # type: ignore[arg-type]
    )
