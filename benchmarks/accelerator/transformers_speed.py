"""transformers' forward pass on the same prompts: padded as most write it, and at its best
(benchmarks/baselines.py).

Weights are drawn on the device here too. `last layer` asks for no hidden states and copies the
last: its products alone.
"""

import statistics
from collections.abc import Callable
from functools import partial

from benchmarks.accelerator.config import PartConfig
from benchmarks.accelerator.layertap_speed import tokens_and_gflop
from benchmarks.accelerator.part import Cases, Figures
from benchmarks.accelerator.sizes import full_steps, sizes_of, speed_shapes
from benchmarks.baselines import Model, Prompts, best_of, last_of, padded_batches, timed
from benchmarks.device import TORCH_DEVICES
from layertap.demo.checkpoint import config_json
from layertap.model.config import DecoderConfig

_WAYS: dict[str, tuple[str, Callable[[Model, Prompts, str], None]]] = {
    "at its best, all layers": ("AutoModel", best_of),
    "at its best, last layer": ("AutoModel", last_of),
    "padded, all layers": ("AutoModelForCausalLM", padded_batches),
}


def cases(config: PartConfig) -> Cases:
    """Both sizes, in bfloat16."""
    return {
        f"{size} {way}": partial(_speed, config, shape, way)
        for size, shape in speed_shapes(config).items()
        for way in _WAYS
    }


def _speed(config: PartConfig, shape: DecoderConfig, way: str) -> Figures:
    kind, run = _WAYS[way]
    device = TORCH_DEVICES[config.platform]
    model = _random_model(kind, shape, device)
    prompts = [ids for _, own in full_steps(config) for ids in own]
    runs = [
        timed(lambda given: run(model, given, device), prompts, device)["seconds"]
        for _ in range(sizes_of(config).repeats)
    ]
    seconds = statistics.median(runs)
    tokens, gflop = tokens_and_gflop(config, shape)
    return {
        "prompts": len(prompts),
        "tokens/s": tokens / seconds,
        "TFLOP/s": gflop / seconds / 1e3,
        "fastest of the runs": tokens / min(runs),
    }


def _random_model(kind: str, shape: DecoderConfig, device: str) -> Model:
    import torch
    import transformers

    described = {name: value for name, value in config_json(shape, "bfloat16").items() if name != "torch_dtype"}
    config = transformers.Qwen2Config(**described)
    with torch.device(device):
        model = getattr(transformers, kind).from_config(config, dtype=torch.bfloat16, attn_implementation="sdpa")
    evaluated: Model = model.eval()
    return evaluated
