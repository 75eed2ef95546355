"""One contender, one run, in a process of its own; prints what it measured as one line of JSON.

A process for each run keeps threads, caches and memory of one library away from the other. Loading is not counted for
any of them; for Layertap everything else is, from reading tasks to the last committed shard. That includes compiling:
the first turn pays for the shapes that the persistent cache does not hold yet, so take three turns or more and let the
median leave it out.

    padded   transformers as most scripts use it: `AutoModelForCausalLM`, batches of 4 in dataset order, padded
    best     transformers at its best: `AutoModel`, one sequence at a time, no padding, hidden states only
    layertap `layertap extract` itself
    ceiling  the largest rate of a matrix product that torch or JAX reaches here, and of writing to this disk
"""

import json
import os
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import tyro

from benchmarks.config import ContenderConfig, Dtype
from layertap.config import ExtractConfig
from layertap.task import BadTask

_BATCH = 4
_SQUARE = 4096
_DISK_BYTES = 2 << 30

Figures = dict[str, float]


def main() -> None:
    """Run the contender that the command line names."""
    config = tyro.cli(ContenderConfig, use_underscores=True)
    runs = {"padded": _padded, "best": _best, "layertap": _layertap, "ceiling": _ceiling}
    print(json.dumps(runs[config.contender](config)))


def model_folder(config: ContenderConfig) -> Path:
    """Where the checkpoint lies."""
    return Path(config.output_dir) / f"model-{config.size}"


def prompt_ids(config: ContenderConfig) -> list[np.ndarray]:
    """The token ids of the first prompts, as Layertap makes them."""
    from layertap.dataset import read_records
    from layertap.prompts import PromptMaker, load_template, load_tokenizer, parse_grid_encoder

    defaults = ExtractConfig(dataset_path=str(config.dataset_path))
    maker = PromptMaker(
        tokenizer=load_tokenizer(model_folder(config)),
        template=load_template(defaults.prompt_version, None),
        encoder=parse_grid_encoder(defaults.grid_encoder),
        predictions_per_task=1,
        include_answer=False,
        seed=defaults.random_seed,
    )
    records = enumerate(read_records(str(config.dataset_path), max_tasks=config.baseline_tasks))
    tasks = [(number, record) for number, record in records if not isinstance(record, BadTask)]
    return [sample.token_ids for sample in maker.make(tasks)]


def _layertap(config: ContenderConfig) -> Figures:
    from layertap.extract.run import extract

    output = Path(config.output_dir) / f"activations-{os.getpid()}"
    run = ExtractConfig(
        dataset_path=str(config.dataset_path),
        max_tasks=config.tasks,
        model_path=str(model_folder(config)),
        predictions_per_task=1,
        compute_dtype=config.dtype,
        layers_to_extract=config.layers,
        activation_type=config.activation_type,
        output_dir=str(output),
        checkpointing=False,
    )
    try:
        summary = extract(run)
    finally:
        shutil.rmtree(output, ignore_errors=True)
    figures: Figures = {f"waited_{stage}": seconds for stage, seconds in summary.waited.items()}
    seconds = summary.seconds - summary.waited["loading"]
    return figures | {"tokens": summary.tokens, "computed_tokens": summary.computed_tokens, "seconds": seconds}


def _best(config: ContenderConfig) -> Figures:
    import torch
    from transformers import AutoModel

    prompts = prompt_ids(config)
    model = AutoModel.from_pretrained(model_folder(config), dtype=getattr(torch, config.dtype))

    def run() -> None:
        for ids in prompts:
            model(torch.from_numpy(ids[None]).long(), output_hidden_states=True, use_cache=False)

    with torch.inference_mode():
        return {"tokens": sum(map(len, prompts)), "seconds": _seconds(run)}


def _padded(config: ContenderConfig) -> Figures:
    import torch
    from transformers import AutoModelForCausalLM

    prompts = prompt_ids(config)
    model = AutoModelForCausalLM.from_pretrained(model_folder(config), dtype=getattr(torch, config.dtype))

    def run() -> None:
        for first in range(0, len(prompts), _BATCH):
            ids, mask = _pad(prompts[first : first + _BATCH])
            model(torch.from_numpy(ids), attention_mask=torch.from_numpy(mask), output_hidden_states=True)

    with torch.inference_mode():
        return {"tokens": sum(map(len, prompts)), "seconds": _seconds(run)}


def _pad(prompts: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    ids = np.zeros((len(prompts), max(map(len, prompts))), np.int64)
    mask = np.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, : len(prompt)] = prompt
        mask[row, : len(prompt)] = 1
    return ids, mask


def _ceiling(config: ContenderConfig) -> Figures:
    figures = {
        "torch_gflops": _torch_gflops(config.dtype),
        "jax_gflops": _jax_gflops(config.dtype),
        "disk_mb": _disk_mb_per_second(Path(config.output_dir)),
    }
    return figures | {"gflops": max(figures["torch_gflops"], figures["jax_gflops"])}


def _torch_gflops(dtype: Dtype) -> float:
    import torch

    left, right = (torch.randn(_SQUARE, _SQUARE).to(getattr(torch, dtype)) for _ in range(2))
    return _gflops(lambda: torch.mm(left, right))


def _jax_gflops(dtype: Dtype) -> float:
    import jax
    import jax.numpy as jnp

    left, right = (jax.random.normal(jax.random.key(seed), (_SQUARE, _SQUARE)).astype(dtype) for seed in range(2))
    product = jax.jit(lambda left, right: jnp.matmul(left, right, preferred_element_type=jnp.float32))
    return _gflops(lambda: product(left, right).block_until_ready())


def _gflops(product: Callable[[], object]) -> float:
    product()
    return 2 * _SQUARE**3 / min(_seconds(product) for _ in range(5)) / 1e9


def _disk_mb_per_second(folder: Path) -> float:
    block = np.random.default_rng(0).bytes(1 << 24)
    path = folder / "disk-speed"

    def write() -> None:
        with path.open("wb") as file:
            for _ in range(_DISK_BYTES // len(block)):
                file.write(block)
            file.flush()
            os.fsync(file.fileno())

    try:
        return _DISK_BYTES / _seconds(write) / 1e6
    finally:
        path.unlink(missing_ok=True)


def _seconds(run: Callable[[], object]) -> float:
    begun = time.perf_counter()
    run()
    return time.perf_counter() - begun


if __name__ == "__main__":
    main()
