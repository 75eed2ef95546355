"""An autoencoder that trains on the device, fed by `layertap.ActivationStream` and by shards that a
run stored in the work folder.

The trainer is that of `examples/train_jax.py`, with the same batches, normalised in the same way.
The first epoch loads, compiles and gives the first batch; the second, with nothing left to compile,
gives the tokens a second, from its beginning to the end of the last training step. What it
explained in the second epoch says whether both trained on the same. `the trainer alone` has one
batch again and again, which is the most that any source could reach.
"""

import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import jax

import layertap
from benchmarks.accelerator.config import PartConfig
from benchmarks.accelerator.part import Cases, Figures
from benchmarks.accelerator.sizes import contender, sizes_of, tasks_file
from benchmarks.workload import model_folder, seconds_of
from layertap.model.families import read_config

STREAM = "from a stream"
STORED = "from stored shards"
ALONE = "the trainer alone"

_ALONE_STEPS = 100
_EXCLUDED = frozenset({"first", "special", "sink"})


def cases(config: PartConfig) -> Cases:
    """The stream, the shards, and the trainer's own speed."""
    return {
        STREAM: partial(_streamed, config),
        STORED: partial(_stored, config),
        ALONE: partial(_alone, config),
    }


def settings(config: PartConfig) -> dict[str, Any]:
    """The run whose activations it trains on: one layer, in the middle."""
    folder = model_folder(contender(config))
    return {
        "dataset_path": str(tasks_file(config)),
        "max_tasks": sizes_of(config).written,
        "model_path": str(folder),
        "layers_to_extract": [read_config(folder).num_hidden_layers // 2],
        "predictions_per_task": sizes_of(config).trained.predictions,
        "share_prefix": config.prefix == "shared",
    }


def batches_of(config: PartConfig, source: Any) -> Any:  # noqa: ANN401 - a stream or a dataset, which give the same
    """The batches that the example trains on."""
    sizes = sizes_of(config).trained
    return source.batches(
        sizes.batch,
        exclude=_EXCLUDED,
        as_="jax",
        drop_last=True,
        center=True,
        scale="unit_rms",
        pool_tokens=sizes.pool,
    )


def _streamed(config: PartConfig) -> Figures:
    begun = time.perf_counter()
    stream = layertap.ActivationStream(**settings(config))
    try:
        waited = stream.progress.waited
        figures = _two_epochs(config, stream, begun)
        return {**figures, "weights loaded in s": waited["loading"], "written in s": "", "waited s": _waits(waited)}
    finally:
        stream.close()


def _waits(waited: Mapping[Any, float]) -> list[str]:
    return [f"{stage} {waited[stage]:.2f}" for stage in ("input", "device", "transfer")]


def _stored(config: PartConfig) -> Figures:
    folder = Path(str(config.work)) / "activations-stream"
    extract = partial(
        layertap.extract, **settings(config), output_dir=str(folder), format="safetensors", checkpointing=False
    )
    try:
        writing = seconds_of(extract)
        begun = time.perf_counter()
        figures = _two_epochs(config, layertap.ActivationDataset(folder), begun)
        return {**figures, "weights loaded in s": "", "written in s": writing}
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _two_epochs(config: PartConfig, source: Any, begun: float) -> Figures:  # noqa: ANN401
    batches, train = batches_of(config, source), _Trainer(config, next(iter(source.taps.values())))
    arrived: list[float] = []
    train.run(batch.activations[:, 0] for batch in _noting(batches, lambda: arrived.append(time.perf_counter())))
    train.forget()
    seconds = seconds_of(lambda: train.run(batch.activations[:, 0] for batch in batches))
    return {
        "tokens/s": train.tokens / seconds,
        "first batch after s": arrived[0] - begun,
        "tokens an epoch": train.tokens,
        "explained": 1 - train.lost,
    }


def _noting(batches: Iterable[Any], note: Callable[[], None]) -> Iterable[Any]:
    for batch in batches:
        jax.block_until_ready(batch.activations)  # type: ignore[no-untyped-call]
        note()
        yield batch


class _Trainer:
    """The example's autoencoder with its optimizer, and what it has seen."""

    def __init__(self, config: PartConfig, width: int) -> None:
        example = import_module("examples.train_jax")
        self._step = example.train_step
        self._state = example.init_state(0, width, sizes_of(config).trained.features)
        self.forget()

    def forget(self) -> None:
        """Count from here on."""
        self.tokens = self._steps = 0
        self._lost: Any = 0.0

    def run(self, given: Iterable[jax.Array]) -> None:
        """Train on these, and wait for the last step."""
        for x in given:
            self._state, lost = self._step(self._state, x)
            self._lost += lost
            self.tokens, self._steps = self.tokens + len(x), self._steps + 1
        jax.block_until_ready(self._state)  # type: ignore[no-untyped-call]

    @property
    def lost(self) -> float:
        """The share that was not explained, in the mean of the steps."""
        return float(self._lost) / self._steps


def _alone(config: PartConfig) -> Figures:
    sizes, width = sizes_of(config).trained, read_config(model_folder(contender(config))).hidden_size
    train = _Trainer(config, width)
    x = jax.random.normal(jax.random.key(0), (sizes.batch, width))
    train.run([x])
    steps = 1 if config.platform == "cpu" else _ALONE_STEPS
    seconds = seconds_of(lambda: train.run([x] * steps))
    return {"tokens/s": steps * sizes.batch / seconds, "features": sizes.features, "width": width}
