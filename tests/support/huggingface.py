"""The values of transformers at every layer and site, read by hooks: the truth for our model."""

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModel

from benchmarks.float64 import float64_throughout
from layertap.core.taps import SITES, Site, Tap

TORCH_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}


def activations(
    folder: Path, token_ids: Sequence[int], dtype: str = "float32", sites: Sequence[Site] = SITES
) -> dict[Tap, np.ndarray]:
    """[tokens, hidden] of every tap for one sequence, in float32, or in float64 if `dtype` is
    that."""
    return activations_of(AutoModel.from_pretrained(folder, dtype=TORCH_DTYPES[dtype]), token_ids, dtype, sites)


def activations_of(
    model: torch.nn.Module, token_ids: Sequence[int], dtype: str = "float32", sites: Sequence[Site] = SITES
) -> dict[Tap, np.ndarray]:
    """Return the same for a decoder that is already loaded."""
    kept = torch.float64 if dtype == "float64" else torch.float32
    model.eval()
    captured: dict[Tap, np.ndarray] = {}

    def keep(tap: Tap, value: torch.Tensor) -> None:
        captured[tap] = value.detach().reshape(len(token_ids), -1).to(kept).numpy()

    def output(tap: Tap):
        return lambda _module, _inputs, value: keep(tap, value[0] if isinstance(value, tuple) else value)

    def given(tap: Tap):
        return lambda _module, inputs: keep(tap, inputs[0])

    for index, layer in enumerate(model.layers):
        # Gemma norms again before it adds: what is added is what that norm gives.
        again = hasattr(layer, "pre_feedforward_layernorm")
        outputs = {
            "residual": layer,
            "mlp": layer.post_feedforward_layernorm if again else layer.mlp,
            "attn": layer.post_attention_layernorm if again else layer.self_attn,
            "attn_in": layer.input_layernorm,
        }
        inputs = {
            "residual_in": layer,
            "residual_mid": layer.pre_feedforward_layernorm if again else layer.post_attention_layernorm,
            "heads": layer.self_attn.o_proj,
            "mlp_in": layer.mlp,
            "neurons": layer.mlp.down_proj,
        }
        for site in sites:
            if site in outputs:
                outputs[site].register_forward_hook(output(Tap(index, site)))
            else:
                inputs[site].register_forward_pre_hook(given(Tap(index, site)))
    with torch.no_grad(), float64_throughout() if dtype == "float64" else nullcontext():
        model(torch.tensor([list(token_ids)]))
    return captured


def relative_errors(value: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Per token, the distance from the truth relative to the truth's length."""
    return np.linalg.norm(value.astype(np.float64) - truth, axis=-1) / np.linalg.norm(truth, axis=-1)
