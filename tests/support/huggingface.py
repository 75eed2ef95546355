"""What transformers gives at every layer and site, read by hooks: the truth for our model."""

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModel

from benchmarks.float64 import float64_throughout
from layertap.core.taps import Tap

TORCH_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}


def activations(folder: Path, token_ids: Sequence[int], dtype: str = "float32") -> dict[Tap, np.ndarray]:
    """[tokens, hidden] of every tap for one sequence, in float32, or in float64 if `dtype` is
    that."""
    kept = torch.float64 if dtype == "float64" else torch.float32
    model = AutoModel.from_pretrained(folder, dtype=TORCH_DTYPES[dtype]).eval()
    captured: dict[Tap, np.ndarray] = {}

    def keep(tap: Tap):
        def hook(_module, _inputs, output):
            value = output[0] if isinstance(output, tuple) else output
            captured[tap] = value.detach().reshape(len(token_ids), -1).to(kept).numpy()

        return hook

    for index, layer in enumerate(model.layers):
        for site, module in (("residual", layer), ("mlp", layer.mlp), ("attn", layer.self_attn)):
            module.register_forward_hook(keep(Tap(index, site)))
    with torch.no_grad(), float64_throughout() if dtype == "float64" else nullcontext():
        model(torch.tensor([list(token_ids)]))
    return captured


def relative_errors(value: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Per token, the distance from the truth relative to the truth's length."""
    return np.linalg.norm(value.astype(np.float64) - truth, axis=-1) / np.linalg.norm(truth, axis=-1)
