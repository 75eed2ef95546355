"""Activations as other tools dump them: by transformers, with the faults that such tools have."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging

LENGTHS = (40, 25)


def token_ids(vocabulary: int, lengths: tuple[int, ...] = LENGTHS, seed: int = 0) -> list[np.ndarray]:
    """Ordinary tokens, some for each sample."""
    random = np.random.default_rng(seed)
    return [random.integers(0, vocabulary, length).astype(np.int32) for length in lengths]


def open_model(folder: Path, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """The model in transformers."""
    logging.disable_progress_bar()
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="eager").eval()


@contextmanager
def reading(model: PreTrainedModel, *names: str) -> Iterator[dict[str, torch.Tensor]]:
    """Record the outputs of these modules while the model runs; [batch, tokens, width] each."""
    kept: dict[str, torch.Tensor] = {}

    def keep(name: str, output) -> None:
        kept[name] = (output[0] if isinstance(output, tuple) else output).detach().clone()

    modules = dict(model.model.named_modules())
    handles = [
        modules[name].register_forward_hook(lambda _module, _inputs, output, name=name: keep(name, output))
        for name in names
    ]
    try:
        yield kept
    finally:
        for handle in handles:
            handle.remove()


def layer_outputs(
    model: Path | PreTrainedModel, ids: np.ndarray, dtype: torch.dtype = torch.float32, **given: object
) -> list[torch.Tensor]:
    """Return the output of each layer, read by hooks; [batch, tokens, width] each."""
    opened = open_model(model, dtype) if isinstance(model, Path) else model
    names = [f"layers.{layer}" for layer in range(opened.config.num_hidden_layers)]
    with reading(opened, *names) as kept, torch.inference_mode():
        opened(torch.as_tensor(ids).long(), **given)
    return [kept[name] for name in names]


def hidden_states(folder: Path, ids: np.ndarray, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    """Return `output_hidden_states`: the embeddings, then each layer, the last one after the final
    norm.
    """
    with torch.inference_mode():
        found = open_model(folder, dtype)(torch.as_tensor(ids).long(), output_hidden_states=True)
    return list(found.hidden_states)


def save(path: Path, **tensors: object) -> Path:
    """Write a safetensors file."""
    save_file({name: torch.as_tensor(value).contiguous() for name, value in tensors.items()}, path)
    return path
