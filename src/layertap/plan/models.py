"""Which model is meant: a checkpoint folder, a Hub id, or a published size, of which no file is needed."""

import re
from pathlib import Path

from layertap.model.checkpoint import open_checkpoint
from layertap.model.config import Qwen2Config, published_config, read_config

# "7b", "Qwen/Qwen2.5-7B", "Qwen2.5-Coder-7B-Instruct": every release of one size has one shape.
_PUBLISHED = re.compile(r"(?:(?:Qwen/)?Qwen2\.5-(?:(?:Coder|Math)-)?)?(\d+(?:\.\d+)?b)(?:-Instruct)?", re.IGNORECASE)


def model_config(model: str) -> Qwen2Config:
    """The shape of `model`; raises ModelError where there is no such model or it is not a Qwen 2.5."""
    if (folder := Path(model).expanduser()).is_dir():
        return read_config(folder)
    if match := _PUBLISHED.fullmatch(model):
        return published_config(match[1].lower())
    return open_checkpoint(model).config
