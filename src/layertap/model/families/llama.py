"""Llama 2, 3, 3.1 and 3.2, SmolLM2 and others that are Llama by their config; and Mistral.

Source: `transformers.models.llama` and `mistral`. Llama has no biases unless its config asks for
them. Mistral's first releases give every layer a window, later ones none.
"""

from layertap.model.config import DecoderConfig
from layertap.model.config_file import ConfigFile
from layertap.model.families.common import require_activation, windows_by_type


def read_llama(file: ConfigFile) -> DecoderConfig:
    """The shape that a `config.json` of model_type llama says."""
    biased = file.flag("attention_bias", False)
    return _read(file, "llama", qkv_bias=biased, output_bias=biased, mlp_bias=file.flag("mlp_bias", False))


def read_mistral(file: ConfigFile) -> DecoderConfig:
    """The same of model_type mistral."""
    layers = file.sizes()["num_hidden_layers"]
    has_window = file.raw.get("sliding_window") is not None
    return _read(file, "mistral", windows=windows_by_type(file, [has_window] * layers))


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
