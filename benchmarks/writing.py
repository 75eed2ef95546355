"""How fast shards are written, and whether writing hides behind the forward pass."""

import gzip
import pickle
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import ml_dtypes
import numpy as np

from benchmarks.config import ContenderConfig
from benchmarks.workload import Figures, disk_mb_per_second, extraction, run_figures, seconds_of
from layertap.core.columns import token_columns
from layertap.core.sample import Sample
from layertap.core.taps import Tap
from layertap.objects import open_store
from layertap.shards.form import ShardFormat
from layertap.shards.manifest import Json, Manifest
from layertap.shards.writer import ShardWriter

_LAYERS = tuple(range(8))
_HIDDEN = 896
_TOKENS = 8192
_SAMPLE = 1024
_KEPT = 4  # shards; all of a run would not fit into memory


def forward(config: ContenderConfig) -> Figures:
    """Time the run with a writer that drops shards: everything that a run does except encoding and
    writing.
    """
    from layertap.pipeline.run import extract

    run = extraction(config)
    try:
        with patch.object(ShardWriter, "commit", _drop):
            return run_figures(extract(run))
    finally:
        shutil.rmtree(run.output_dir, ignore_errors=True)


def _drop(writer: ShardWriter, _samples: Sequence[Sample], progress: Json, *, complete: bool) -> None:
    writer.manifest = writer.manifest.with_shard(None, progress, complete=complete)


def stages(config: ContenderConfig) -> Figures:
    """Time the run with a writer that drops shards, and then the writing alone: of the first few
    shards, for all tokens.
    """
    from layertap.pipeline.run import extract

    kept: list[list[Sample]] = []
    writers: list[ShardWriter] = []

    def keep(writer: ShardWriter, samples: Sequence[Sample], progress: Json, *, complete: bool) -> None:
        if samples and len(kept) < _KEPT:
            kept.append(list(samples))
        writers.append(writer)
        _drop(writer, samples, progress, complete=complete)

    run = extraction(config)
    try:
        commit = ShardWriter.commit
        with patch.object(ShardWriter, "commit", keep):
            summary = extract(run)
        some = seconds_of(lambda: [commit(writers[0], samples, {}, complete=False) for samples in kept])
    finally:
        shutil.rmtree(run.output_dir, ignore_errors=True)
    written = sum(sample.tokens for samples in kept for sample in samples)
    writing = some * summary.tokens / written
    return {"forward": summary.seconds - summary.waited["loading"], "writing": writing, "tokens": summary.tokens}


def formats(config: ContenderConfig) -> Figures:
    """Measure how many MB a second each format accepts of a bfloat16 run's activations; safetensors
    also on disk.

    For pickles the float32 bytes before compression count, for safetensors those of the file.
    """
    folder = Path(config.output_dir) / "formats"
    samples = _samples()
    figures: Figures = {}
    taps = {Tap(layer, "residual"): _HIDDEN for layer in _LAYERS}
    try:
        for name, dtype in (("pickle", np.dtype(np.float32)), ("safetensors", np.dtype(ml_dtypes.bfloat16))):
            form = ShardFormat(taps, dtype, compress=True, name=name)  # type: ignore[arg-type]
            megabytes = _TOKENS * form.bytes_per_token / 1e6
            figures[name] = megabytes / min(_writing_seconds(folder, form, samples) for _ in range(3))
        figures["disk"] = disk_mb_per_second(Path(config.output_dir))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    raw = pickle.dumps([sample.activations[Tap(0, "residual")].astype(np.float32) for sample in samples])
    figures["gzip_6"] = len(raw) / 1e6 / seconds_of(lambda: gzip.compress(raw, 6))
    return figures


def _samples() -> list[Sample]:
    rng = np.random.default_rng(0)
    values = rng.standard_normal((len(_LAYERS), _TOKENS, _HIDDEN), np.float32).astype(ml_dtypes.bfloat16)
    return [
        Sample(
            sample_idx=index,
            task_id=str(index),
            text_preview="",
            origin={},
            columns=token_columns(np.arange(_SAMPLE, dtype=np.int32), frozenset()),
            activations={
                Tap(layer, "residual"): values[layer, index * _SAMPLE : (index + 1) * _SAMPLE] for layer in _LAYERS
            },
        )
        for index in range(_TOKENS // _SAMPLE)
    ]


def _writing_seconds(folder: Path, form: ShardFormat, samples: Sequence[Sample]) -> float:
    """Time the writing of one shard and its manifest, synced."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    writer = ShardWriter(open_store(str(folder)), _manifest(form), form, lambda _manifest: None)
    return seconds_of(lambda: writer.commit(list(samples), {}, complete=True))


def _manifest(form: ShardFormat) -> Manifest:
    empty = Manifest(
        fingerprint="",
        identity={},
        config={},
        worker_id=0,
        model_path="",
        model_type="qwen2",
        special_ids=(),
        format=form.name,
        taps=form.taps,
        storage_dtype=form.dtype.name,
    )
    return replace(empty, config={"benchmark": True})
