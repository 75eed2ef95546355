"""What transformers gives at every layer and site, read by hooks: the truth that the model is compared with."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from transformers import AutoModel
from transformers.models.qwen2.modeling_qwen2 import Qwen2RMSNorm, Qwen2RotaryEmbedding

from layertap.tap import Tap

TORCH_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}


def activations(folder: Path, token_ids: Sequence[int], dtype: str = "float32") -> dict[Tap, np.ndarray]:
    """[tokens, hidden] for every tap, from a forward pass in `dtype` over one sequence; float32, or float64 of that."""
    kept = torch.float64 if dtype == "float64" else torch.float32
    model = AutoModel.from_pretrained(folder, dtype=TORCH_DTYPES[dtype]).eval()
    captured: dict[Tap, np.ndarray] = {}

    def keep(tap: Tap):
        def hook(_module, _inputs, output):
            value = output[0] if isinstance(output, tuple) else output
            captured[tap] = value.detach().reshape(len(token_ids), -1).to(kept).numpy()

        return hook

    for index, layer in enumerate(model.layers):
        layer.register_forward_hook(keep(Tap(index, "residual")))
        layer.mlp.register_forward_hook(keep(Tap(index, "mlp")))
        layer.self_attn.register_forward_hook(keep(Tap(index, "attn")))
    with torch.no_grad(), _float64_throughout() if dtype == "float64" else nullcontext():
        model(torch.tensor([list(token_ids)]))
    return captured


@contextmanager
def _float64_throughout() -> Iterator[None]:
    """transformers takes norms, cosines and sines in float32, whatever the model's dtype; here, in float64.

    The angles stay what float32 makes of them: models are trained with those.
    """

    def norm(self, x):
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon))

    def rotary(self, _x, position_ids):
        angles = (position_ids[..., None].float() * self.inv_freq.float()).double()
        both = torch.cat((angles, angles), dim=-1)
        return both.cos(), both.sin()

    with patch.object(Qwen2RMSNorm, "forward", norm), patch.object(Qwen2RotaryEmbedding, "forward", rotary):
        yield


def relative_errors(value: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Per token, the distance from the truth relative to the truth's length."""
    return np.linalg.norm(value.astype(np.float64) - truth, axis=-1) / np.linalg.norm(truth, axis=-1)
