"""transformers' residual stream behind every layer, on the device, kept in the work folder for
`parity`.

float64 throughout is the truth; float32 and bfloat16 are what we are compared with. A forward hook
reads each layer, since the last of `hidden_states` has been through the final norm. One prompt at a
time: no padding, no mask.
"""

from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.accelerator.config import PartConfig
from benchmarks.accelerator.part import Cases, Figures
from benchmarks.accelerator.sizes import contender, sizes_of
from benchmarks.config import ContenderConfig
from benchmarks.device import TORCH_DEVICES
from benchmarks.float64 import float64_throughout
from benchmarks.workload import model_folder, prompt_ids, seconds_of

DTYPES = ("float64", "float32", "bfloat16")


def models(config: PartConfig) -> dict[str, ContenderConfig]:
    """Random weights, and real ones where a folder was given."""
    given = contender(config)
    found = {"random weights": given}
    if config.real_model is not None:
        link = Path(str(config.work)) / "model-real"
        if not link.exists():
            link.symlink_to(Path(config.real_model).resolve())
        found["real weights"] = ContenderConfig(**{**vars(given), "size": "real"})
    return found


def cases(config: PartConfig) -> Cases:
    """Each model in each dtype."""
    return {
        f"{name} {dtype}": partial(_states, config, model, dtype)
        for name, model in models(config).items()
        for dtype in DTYPES
    }


def prompts_of(config: PartConfig, model: ContenderConfig) -> list[np.ndarray]:
    """A few prompts of the model's own tokenizer, of at most so many tokens together."""
    sizes, chosen = sizes_of(config), list[np.ndarray]()
    for ids in prompt_ids(model):
        cut = ids[: sizes.longest]
        if sum(map(len, chosen)) + len(cut) <= sizes.parity_tokens:
            chosen.append(cut)
    return chosen


def states_file(config: PartConfig, model: ContenderConfig, dtype: str) -> Path:
    """Where [layers, tokens, hidden] lie, tokens of all prompts one after another."""
    return Path(str(config.work)) / f"states-{model.size}-{dtype}.npy"


def _states(config: PartConfig, model: ContenderConfig, dtype: str) -> Figures:
    import torch
    from transformers import AutoModel

    device, given = TORCH_DEVICES[config.platform], prompts_of(config, model)
    loaded: Any = AutoModel.from_pretrained(
        model_folder(model), dtype=getattr(torch, dtype), attn_implementation="sdpa"
    ).to(device)
    read: list[list[np.ndarray]] = [[] for _ in loaded.layers]

    def keep(layer: int, output: torch.Tensor | tuple[torch.Tensor, ...]) -> None:
        state = output[0] if isinstance(output, tuple) else output
        wide = torch.float64 if dtype == "float64" else torch.float32
        read[layer].append(state[0].to("cpu", wide).numpy())

    for number, layer in enumerate(loaded.layers):
        layer.register_forward_hook(lambda _layer, _given, output, number=number: keep(number, output))
    with torch.inference_mode(), float64_throughout() if dtype == "float64" else nullcontext():
        seconds = seconds_of(lambda: [loaded(torch.from_numpy(ids[None]).long().to(device)) for ids in given])
    states = np.stack([np.concatenate(layer) for layer in read])
    np.save(states_file(config, model, dtype), states)
    return {"prompts": len(given), "tokens": states.shape[1], "layers": len(read), "seconds": seconds}
