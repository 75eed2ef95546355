"""The families of decoders. Each has a file that reads its `config.json` and knows its tensors.

To add one, write such a file and add it to `FAMILIES` (docs/models.md has the steps). Where two
families share a feature, `DecoderConfig` has one field for it.
"""

from collections.abc import Callable
from pathlib import Path

from layertap.model.config import DecoderConfig
from layertap.model.config_file import ConfigFile
from layertap.model.families import gemma, llama, phi3, qwen

FAMILIES: dict[str, Callable[[ConfigFile], DecoderConfig]] = {
    "qwen2": qwen.read_qwen2,
    "qwen3": qwen.read_qwen3,
    "llama": llama.read_llama,
    "mistral": llama.read_mistral,
    "gemma2": gemma.read_gemma2,
    "gemma3_text": gemma.read_gemma3,
    "phi3": phi3.read_phi3,
}
_WITH_TEXT = {"gemma3": "gemma3_text"}
"""Models with a part for text that is a family of its own, under `text_config`."""


def read_config(folder: Path) -> DecoderConfig:
    """Read `folder/config.json`.

    Raises ModelError if it is missing or malformed, or if Layertap does not run this model.
    """
    file = ConfigFile.read(folder)
    quantised = file.mapping("quantization_config")
    if quantised:
        method = quantised.get("quant_method", "unknown")
        file.refuse(f"weights are quantised ({method}); give the bfloat16 or float32 release")
    model_type = file.raw.get("model_type")
    if model_type in _WITH_TEXT:
        file, model_type = file.section("text_config"), _WITH_TEXT[str(model_type)]
    if model_type not in FAMILIES:
        file.refuse(f"model_type is {model_type!r}; Layertap runs {', '.join(FAMILIES)} (docs/models.md)")
    return FAMILIES[str(model_type)](file)
