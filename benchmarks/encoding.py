"""What encoding costs, and what the whole pipeline writes where the device costs nothing.

    alone     `encode` of one shard, into memory
    parts     what it is made of, each by itself on the same values, in one thread
    pipeline  `layertap extract` with a simulated device, which returns rows at once: everything but
              the forward pass, into a folder in memory where the system has one

A virtual machine may get memory from its host when a page is first used, at a fifth of the speed
of writing to it. A long run uses pages again. So some gigabytes are written and removed before
`pipeline`. Its figures still differ by a third from turn to turn on such a machine.

Seconds of the parts are processor time. Of `alone` and `pipeline` there is the wall clock too,
since only that shows what a second core brings. `--cores` is the processor affinity of the process.

The values are Gaussian, of channels that differ in mean and scale: gzip finds in them what it finds
in activations, rounded to the compute dtype.
"""

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import ml_dtypes  # noqa: F401 - numpy knows bfloat16 from here on
import numpy as np

from benchmarks.config import ContenderConfig
from benchmarks.workload import Figures, extraction, model_folder
from layertap.core.columns import token_columns
from layertap.core.sample import Activation, Sample
from layertap.core.taps import Tap
from layertap.model.families import read_config
from layertap.objects import open_store
from layertap.objects.base import OWNED
from layertap.objects.files import crc32c_of
from layertap.pipeline.setup import DTYPES
from layertap.shards.encode import EncodedShard, encode
from layertap.shards.form import ShardFormat
from layertap.shards.loops import loops_pay
from layertap.shards.measuring import measure_in_float32
from layertap.shards.pickles import igzip
from layertap.shards.quantised import is_quantised, quantise
from layertap.shards.rounding import round_activation, round_values

if TYPE_CHECKING:  # it brings JAX
    from layertap.pipeline.step import Beginning

LAYERS = tuple(range(8))
_TOKENS = 16_384
_SAMPLE = 1024
_TURNS = 3
_ABOUT = {"model_path": "", "model_type": "", "fingerprint": ""}
_MEMORY = Path("/dev/shm")
_TOUCHED_BYTES = 6_000_000_000


def encoding(config: ContenderConfig) -> Figures:
    """Measure one format and storage dtype on so many cores."""
    if config.cores is not None:
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: config.cores])
    shape = read_config(model_folder(config))
    config = replace(config, layers=config.layers or LAYERS[: shape.num_hidden_layers])
    width = shape.hidden_size
    values = _values(len(config.layers), _TOKENS, width, np.dtype(config.dtype))
    samples = _samples(config, values)
    taps = {Tap(layer, "residual"): width for layer in config.layers}
    compress = config.format == "pickle"
    form = ShardFormat(taps, DTYPES[config.storage_dtype], compress=compress, name=config.format)
    folder = Path(tempfile.mkdtemp(dir=_MEMORY if _MEMORY.is_dir() else config.output_dir))
    try:
        run = replace(config, output_dir=str(folder))
        return _alone(samples, form, folder) | _pipeline(run, str(model_folder(config)), form, values)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _touch_memory(file: Path) -> None:
    """Use as much memory as a run will, or half of what is free, and give it back."""
    free = min(shutil.disk_usage(file.parent).free, os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    chunk = bytes(1 << 20)
    with file.open("wb") as opened:
        for _ in range(min(_TOUCHED_BYTES, free // 2) // len(chunk)):
            opened.write(chunk)
    file.unlink()


def _values(layers: int, tokens: int, width: int, dtype: np.dtype) -> np.ndarray:
    rng = np.random.default_rng(0)
    means, scales = 3 * rng.standard_normal((2, layers, 1, width), np.float32)
    return (means + scales * rng.standard_normal((layers, tokens, width), np.float32)).astype(dtype)


def _samples(config: ContenderConfig, values: np.ndarray) -> list[Sample]:
    columns = token_columns(np.arange(_SAMPLE, dtype=np.int32), frozenset())
    spans = [slice(begin, begin + _SAMPLE) for begin in range(0, values.shape[1], _SAMPLE)]
    return [
        Sample(number, str(number), "", columns, {}, _at_taps(config, values, span))
        for number, span in enumerate(spans)
    ]


def _at_taps(config: ContenderConfig, values: np.ndarray, span: slice) -> dict[Tap, np.ndarray]:
    return {Tap(layer, "residual"): rows[span] for layer, rows in zip(config.layers, values, strict=True)}


def _alone(samples: list[Sample], form: ShardFormat, folder: Path) -> Figures:
    """Time `encode` of all samples as one shard, and its parts; the best of three."""
    plain = encode(1, samples, replace(form, compress=False), _ABOUT)
    shard = encode(1, samples, form, _ABOUT)
    bytes_of = {
        "values": sum(sample.tokens for sample in samples) * sum(form.taps.values()),
        "encoded_bytes": _bytes(plain),
        "file_bytes": _bytes(shard),
    }
    wall, processor = _seconds(lambda: encode(1, samples, form, _ABOUT))
    parts = {name: _seconds(part)[1] for name, part in _parts(samples, form, plain, shard, folder).items()}
    return {**bytes_of, "encode_seconds": wall, "encode_processor": processor, **parts}


def _bytes(shard: EncodedShard) -> int:
    return sum(content.size for content in shard.contents.values())


def _parts(
    samples: list[Sample], form: ShardFormat, plain: EncodedShard, shard: EncodedShard, folder: Path
) -> dict[str, Callable[[], object]]:
    by_loops = loops_pay(sum(sample.tokens for sample in samples) * sum(form.taps.values()))
    stored = [(_read(sample, tap, form.dtype), sample.sample_idx) for sample in samples for tap in form.taps]
    given = [sample.activations[tap] for sample in samples for tap in form.taps]
    raw = b"".join(chunk for content in plain.contents.values() for chunk in content.chunks()) if form.compress else b""
    store = open_store(str(folder / "parts"))
    return {
        "statistics": lambda: [measure_in_float32(values, number, by_loops=by_loops) for values, number in stored],
        "conversion": lambda: [_convert(values, form.dtype, by_loops) for values in given],
        "compression": lambda: igzip.compress(raw, 2) if form.compress and igzip is not None else None,
        "crc": lambda: [crc32c_of(content.chunks()) for content in shard.contents.values()],
        "write": lambda: [store.put(path, content, replaces=OWNED) for path, content in shard.contents.items()],
    }


def _read(sample: Sample, tap: Tap, dtype: np.dtype) -> Activation:
    """The values as they are read from what is stored."""
    if is_quantised(dtype):
        return quantise(sample.activations[tap], dtype).values
    return round_activation(sample, tap, dtype)


def _convert(values: Activation, dtype: np.dtype, by_loops: bool) -> object:
    """As `encode` does it, which widens values while it measures them."""
    if np.can_cast(values.dtype, dtype):
        return None
    if is_quantised(dtype):
        return quantise(values, dtype, by_loops=by_loops)
    return round_values(values, np.empty(values.shape, dtype), by_loops=by_loops)


def _seconds(run: Callable[[], object]) -> tuple[float, float]:
    """Return seconds by the clock, and of the processor."""
    took = []
    for _ in range(_TURNS):
        begun = time.perf_counter(), time.process_time()
        run()
        took.append((time.perf_counter() - begun[0], time.process_time() - begun[1]))
    wall, processor = zip(*took, strict=True)
    return min(wall), min(processor)


def _pipeline(config: ContenderConfig, model: str, form: ShardFormat, values: np.ndarray) -> Figures:
    from layertap.pipeline.run import extract
    from layertap.pipeline.session import Session

    run = replace(extraction(config), model_path=model, storage_dtype=config.storage_dtype)
    long_enough = np.tile(values, (1, -(-run.max_seq_length // values.shape[1]), 1))
    device = _SimulatedDevice(_at_taps(config, long_enough, slice(None)))
    with patch.object(Session, "program", lambda *_: device), patch.object(Session, "loading", _loads_nothing):
        if Path(run.output_dir).parent == _MEMORY:
            _touch_memory(Path(run.output_dir).with_suffix(".touched"))
        begun = time.perf_counter(), time.process_time()
        summary = extract(run)
        took = time.perf_counter() - begun[0], time.process_time() - begun[1]
    written = sum(path.stat().st_size for path in Path(run.output_dir).rglob("*") if path.is_file())
    return {
        "run_tokens": summary.tokens,
        "run_bytes": summary.tokens * form.bytes_per_token,
        "run_file_bytes": written,
        "run_seconds": took[0],
        "run_processor": took[1],
        **{f"waited_{stage}": seconds for stage, seconds in summary.waited.items()},
    }


@contextmanager
def _loads_nothing(*_: object) -> Iterator[Future[None]]:
    nothing: Future[None] = Future()
    nothing.set_result(None)
    yield nothing


class _SimulatedDevice:
    """Replaces a `StepProgram`: every row has the same values, and each step is ready at once."""

    def __init__(self, values: dict[Tap, np.ndarray]) -> None:
        self._values = values

    def compile(self, shape: tuple[int, int], prefix: int = 0) -> None:
        """Nothing to do."""

    def begin(self, _weights: None, token_ids: np.ndarray) -> "Beginning":
        """A prefix gets the values of any other row."""
        from layertap.pipeline.step import Beginning

        tokens = len(token_ids)
        return Beginning(tokens, tokens, (), {tap: values[:tokens] for tap, values in self._values.items()})

    def dispatch(
        self, _weights: None, token_ids: np.ndarray, _seg_start: np.ndarray, _beginning: "Beginning | None"
    ) -> tuple[int, int]:
        """A step is its shape."""
        rows, length = token_ids.shape
        return rows, length

    def is_ready(self, _step: Any) -> bool:  # noqa: ANN401 - as the program has it
        """At once."""
        return True

    def harvest(self, step: tuple[int, int], _beginning: "Beginning | None") -> dict[Tap, np.ndarray]:
        """Return views of the same values."""
        rows, length = step
        return {
            tap: np.broadcast_to(values[:length], (rows, length, values.shape[1]))
            for tap, values in self._values.items()
        }

    def close(self) -> None:
        """Nothing to end."""
