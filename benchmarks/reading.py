"""`python -m benchmarks.reading`: the reader beside plain sequential reads of the same files.

    plain      every activation file from its beginning to its end, 8 MiB at a time, into one buffer
    in_order   `batches(shuffle=False)`, each batch copied into one buffer, so that maps are read
    shuffled   `batches()`, as a trainer takes them
    normalised the same, centred and scaled, in float32
    runs       the same as `shuffled`, in runs of 64 tokens

Rates are of what is stored. Each is measured with the files dropped from the page cache before
(`posix_fadvise`; what the disk below keeps in its own cache stays) and with them in it. Contenders
take turns, each at the head of one; the median of the rates counts.
"""

import gc
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import tyro

from layertap import ActivationDataset
from layertap.core.columns import token_columns
from layertap.core.sample import Sample
from layertap.core.taps import Tap
from layertap.objects import open_store
from layertap.shards.form import ShardFormat
from layertap.shards.manifest import Manifest
from layertap.shards.writer import ShardWriter

_BLOCK = 8 << 20
_SAMPLE_TOKENS = 1110
_RUN = 64


@dataclass(frozen=True)
class ReadingConfig:
    """Measure how fast stored activations are read."""

    gb: float = 2.0
    """How much is written, as safetensors in bfloat16, one tap."""

    shard_gb: float = 0.25
    """The size of a shard."""

    hidden: int = 896
    """The width of an activation; that of the 0.5B."""

    batch_size: int = 4096
    """Tokens in a batch."""

    repeats: int = 3
    """How often each contender runs."""

    folder: str | None = None
    """Where to write; None: a temporary folder."""


def main() -> None:
    """Write, measure, print a table and a line of JSON."""
    config = tyro.cli(ReadingConfig, use_underscores=True)
    with tempfile.TemporaryDirectory(dir=config.folder) as name:
        folder = Path(name)
        print(f"writing {config.gb} GB to {folder}", file=sys.stderr)
        _write(folder, config)
        rates = _measure(folder, config)
    for cache, by_name in rates.items():
        plain = statistics.median(by_name["plain"])
        for contender, own in by_name.items():
            median = statistics.median(own)
            print(f"{cache:>9}  {contender:<10} {median:8.0f} MB/s  {median / plain:6.0%} of plain")
    print(json.dumps(rates))


def _write(folder: Path, config: ReadingConfig) -> None:
    dtype = np.dtype(ml_dtypes.bfloat16)
    form = ShardFormat({Tap(0, "residual"): config.hidden}, dtype, compress=False, name="safetensors")
    manifest = Manifest(
        fingerprint="", identity={}, config={}, worker_id=0, model_path="random", model_type="qwen2", special_ids=(),
        format=form.name, taps=form.taps, storage_dtype=dtype.name,
    )  # fmt: skip
    writer = ShardWriter(open_store(str(folder)), manifest, form, lambda _: None)
    rng = np.random.default_rng(0)
    noise = rng.standard_normal((_SAMPLE_TOKENS, config.hidden), np.float32).astype(dtype)
    columns = token_columns(np.zeros(_SAMPLE_TOKENS, np.int32), frozenset())
    shards = max(1, round(config.gb / config.shard_gb))
    each = max(1, int(config.shard_gb * 1e9 / noise.nbytes))
    for shard in range(shards):
        samples = [
            Sample(shard * each + number, f"task{number}", "", columns, {}, {Tap(0, "residual"): noise})
            for number in range(each)
        ]
        writer.commit(samples, {}, complete=shard == shards - 1)


def _measure(folder: Path, config: ReadingConfig) -> dict[str, dict[str, list[float]]]:
    files = sorted(folder.glob("shard_*.safetensors"))
    contenders: dict[str, Callable[[], int]] = {
        "plain": lambda: _plain(files),
        "in_order": lambda: _batches(folder, config, shuffle=False),
        "shuffled": lambda: _batches(folder, config, shuffle=True),
        "normalised": lambda: _batches(folder, config, shuffle=True, center=True, scale="unit_rms"),
        "runs": lambda: _batches(folder, config, shuffle=True, sequence=_RUN),
    }
    rates: dict[str, dict[str, list[float]]] = {
        cache: {name: [] for name in contenders} for cache in ("disk", "cached")
    }
    names = list(contenders)
    for turn in range(config.repeats):
        for cache, by_name in rates.items():
            first = turn % len(names)
            for name in names[first:] + names[:first]:
                contender = contenders[name]
                if cache == "disk":
                    _drop(files)
                begun = time.monotonic()
                done = contender()
                by_name[name].append(done / 1e6 / (time.monotonic() - begun))
    return rates


def _drop(files: list[Path]) -> None:
    gc.collect()  # pages that are mapped would stay
    for path in files:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def _plain(files: list[Path]) -> int:
    buffer, done = bytearray(_BLOCK), 0
    for path in files:
        with path.open("rb", buffering=0) as file:
            while count := file.readinto(buffer):
                done += count
    return done


def _batches(folder: Path, config: ReadingConfig, *, shuffle: bool, **asked: Any) -> int:  # noqa: ANN401
    done = 0
    buffer = np.empty((config.batch_size, 1, config.hidden), np.uint16)
    for batch in ActivationDataset(folder).batches(config.batch_size, shuffle=shuffle, **asked):
        if not shuffle:
            np.copyto(buffer[: len(batch)], batch.activations.view(np.uint16))
        done += batch.positions.size * config.hidden * buffer.itemsize
    return done


if __name__ == "__main__":
    main()
