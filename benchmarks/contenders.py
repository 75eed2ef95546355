"""One contender, one run, in a process of its own; prints what it measured as one line of JSON.

A process for each run keeps threads, caches and memory of one library away from the other. Loading is not counted for
any of them; for Layertap everything else is, from reading tasks to the last committed shard. That includes compiling:
the first turn pays for the shapes that the persistent cache does not hold yet, so take three turns or more and let the
median leave it out.

    padded   transformers as most scripts use it: `AutoModelForCausalLM`, batches of 4 in dataset order, padded
    best     transformers at its best: `AutoModel`, one sequence at a time, no padding, hidden states only
    layertap `layertap extract` itself
    ceiling  the largest rate of a matrix product that torch or JAX reaches here, and of writing to this disk
    stages   Layertap's run without writing, and then the writing of the same shards alone
    formats  MB of float32 activations a second, for each format, and for the standard library's gzip
"""

import json
import resource
import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from benchmarks.config import ContenderConfig, Dtype
from benchmarks.workload import Figures, disk_mb_per_second, extraction, model_folder, prompt_ids, seconds_of
from benchmarks.writing import formats, stages

_TORCH_DEVICES = {"cpu": "cpu", "gpu": "cuda"}
_BATCH = 4
_SQUARE = 4096


def main() -> None:
    """Run the contender that the command line names."""
    config = tyro.cli(ContenderConfig, use_underscores=True)
    runs = {
        "padded": _padded,
        "best": _best,
        "layertap": _layertap,
        "ceiling": _ceiling,
        "stages": stages,
        "formats": formats,
    }
    figures = runs[config.contender](config)
    print(json.dumps({**figures, "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6}))


def _layertap(config: ContenderConfig) -> Figures:
    from layertap.extract.run import extract

    run = extraction(config)
    try:
        summary = extract(run)
        written = sum(path.stat().st_size for path in Path(run.output_dir).rglob("*") if path.is_file())
    finally:
        shutil.rmtree(run.output_dir, ignore_errors=True)
    figures: Figures = {f"waited_{stage}": seconds for stage, seconds in summary.waited.items()}
    return figures | {
        "tokens": summary.tokens,
        "computed_tokens": summary.computed_tokens,
        "seconds": summary.seconds - summary.waited["loading"],
        "written_mb": written / 1e6,
    }


def _best(config: ContenderConfig) -> Figures:
    import torch
    from transformers import AutoModel

    prompts = prompt_ids(config)
    device = _TORCH_DEVICES[config.device]
    model: Any = AutoModel.from_pretrained(model_folder(config), dtype=getattr(torch, config.dtype))
    model.to(device)

    def run() -> None:
        for ids in prompts:
            given = torch.from_numpy(ids[None]).long().to(device)
            _to_host(model(given, output_hidden_states=True, use_cache=False).hidden_states)

    with torch.inference_mode():
        return {"tokens": sum(map(len, prompts)), "seconds": seconds_of(run)}


def _padded(config: ContenderConfig) -> Figures:
    import torch
    from transformers import AutoModelForCausalLM

    prompts = prompt_ids(config)
    device = _TORCH_DEVICES[config.device]
    model: Any = AutoModelForCausalLM.from_pretrained(model_folder(config), dtype=getattr(torch, config.dtype))
    model.to(device)

    def run() -> None:
        for first in range(0, len(prompts), _BATCH):
            ids, mask = (torch.from_numpy(array).to(device) for array in _pad(prompts[first : first + _BATCH]))
            _to_host(model(ids, attention_mask=mask, output_hidden_states=True).hidden_states)

    with torch.inference_mode():
        return {"tokens": sum(map(len, prompts)), "seconds": seconds_of(run)}


def _to_host(hidden_states: Iterable[Any]) -> None:
    """What whoever keeps activations has to do with them; costs nothing on CPU."""
    for state in hidden_states:
        state.cpu()


def _pad(prompts: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    ids = np.zeros((len(prompts), max(map(len, prompts))), np.int64)
    mask = np.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, : len(prompt)] = prompt
        mask[row, : len(prompt)] = 1
    return ids, mask


def _ceiling(config: ContenderConfig) -> Figures:
    figures = {
        "torch_gflops": _torch_gflops(config.dtype, _TORCH_DEVICES[config.device]),
        "jax_gflops": _jax_gflops(config.dtype),
        "disk_mb": disk_mb_per_second(Path(config.output_dir)),
    }
    return figures | {"gflops": max(figures["torch_gflops"], figures["jax_gflops"])}


def _torch_gflops(dtype: Dtype, device: str) -> float:
    import torch

    left, right = (torch.randn(_SQUARE, _SQUARE).to(device, getattr(torch, dtype)) for _ in range(2))
    return _gflops(lambda: torch.mm(left, right).flatten()[0].item())


def _jax_gflops(dtype: Dtype) -> float:
    import jax
    import jax.numpy as jnp

    left, right = (jax.random.normal(jax.random.key(seed), (_SQUARE, _SQUARE)).astype(dtype) for seed in range(2))
    product = jax.jit(lambda left, right: jnp.matmul(left, right, preferred_element_type=jnp.float32))
    return _gflops(lambda: product(left, right).block_until_ready())


def _gflops(product: Callable[[], object]) -> float:
    product()
    return 2 * _SQUARE**3 / min(seconds_of(product) for _ in range(5)) / 1e9


if __name__ == "__main__":
    main()
