"""Sharded datasets and workers in tests, and what they leave behind."""

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import commands
import numpy as np
import shards
from runs import changed, finished, out

from layertap.config.extract import ExtractConfig
from layertap.config.fleet import CreateShardsConfig
from layertap.config.sharded import ShardedConfig
from layertap.fleet.claims import read_claim, shard_of
from layertap.fleet.sharded import create_shards
from layertap.objects.base import ObjectStore
from layertap.objects.files import file_crc32c


def cut(tasks: str | Path, place: str, count: int) -> None:
    """Make a sharded dataset of these tasks."""
    create_shards(CreateShardsConfig(dataset_path=str(tasks), output=place, num_shards=count))


def worker_of(config: ExtractConfig, place: str, worker: int = 0, **sharded: Any) -> ExtractConfig:
    """The settings of `config`, for a worker that claims shards at `place`."""
    return dataclasses.replace(
        config,
        dataset_path=None,
        worker_id=worker,
        sharded=ShardedConfig(use_sharded_dataset=True, sharded_dataset_dir=place, **sharded),
    )


def flags_of(config: ExtractConfig) -> list[str]:
    """The command line that gives these settings, defaults left out."""
    flags: list[str] = []
    default = ExtractConfig(dataset_path="x")
    for parts, defaults in ((config, default), (config.sharded, default.sharded), (config.upload, default.upload)):
        for field in dataclasses.fields(parts):
            value = getattr(parts, field.name)
            if dataclasses.is_dataclass(value) or value == getattr(defaults, field.name) or value is None:
                continue
            if isinstance(value, bool):
                flags.append(f"--{field.name}" if value else f"--no_{field.name}")
            else:
                flags += [f"--{field.name}", *map(str, value if isinstance(value, tuple) else (value,))]
    return flags


def done(store: ObjectStore) -> list[dict[str, Any]]:
    """Every done-manifest, in order of shards."""
    return [json.loads(store.read(info.name).data) for info in store.list("done/")]


def union(store: ObjectStore, layer: int) -> dict[int, dict[str, Any]]:
    """Every sample that the done-manifests name, by its number; every named file is checked."""
    found: dict[int, dict[str, Any]] = {}
    for manifest in done(store):
        folder = Path(manifest["output"])
        for file in [*manifest["files"], manifest["manifest"]]:
            path = folder / file["path"]
            assert (path.stat().st_size, file_crc32c(path)) == (file["bytes"], file["crc32c"])
        for file in (file for file in manifest["files"] if ".pkl" in file["path"]):
            for entry in shards.read(folder / file["path"])[layer]:
                assert entry["sample_idx"] not in found
                found[entry["sample_idx"]] = entry
    return found


def assert_same(found: dict[int, dict[str, Any]], wanted: dict[int, dict[str, Any]], tolerance: float) -> None:
    """The same samples, with the same tokens and, to rounding, the same activations."""
    assert found.keys() == wanted.keys()
    for number, entry in wanted.items():
        assert found[number]["task_id"] == entry["task_id"]
        assert found[number]["origin"] == entry["origin"]
        np.testing.assert_array_equal(found[number]["token_ids"], entry["token_ids"])
        scale = np.abs(entry["activation"]).max()
        np.testing.assert_allclose(found[number]["activation"], entry["activation"], rtol=0, atol=tolerance * scale)


@contextmanager
def engine(
    config: ExtractConfig, log: Path, name: str, count: int, *flags: str, **environment: str
) -> Iterator[subprocess.Popen[bytes]]:
    """Run `--engine NAME` with its output in a file, so that no pipe fills up."""
    script = commands.ROOT / "extract_activations.py"
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, script, *flags_of(config), "--engine", name, "--num_workers", str(count), *flags],
            env={**os.environ, "PYTHONPATH": str(commands.ROOT / "src"), **environment},
            cwd=log.parent,
            stdout=file,
            stderr=file,
        )
        try:
            yield process
        finally:
            process.kill()
            process.wait()


def process_of(folder: Path) -> int | None:
    """Find the process of a worker by the folder that it has locked."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            links = [os.readlink(descriptor) for descriptor in (process / "fd").iterdir()]
        except OSError:
            continue  # it has ended, or is not ours
        if str(folder / ".lock") in links:
            return int(process.name)
    return None


def whole(config: ExtractConfig, tmp_path: Path) -> dict[int, dict[str, Any]]:
    """Return what one run over everything writes."""
    alone = changed(config, output_dir=str(tmp_path / "whole"), checkpoint_dir=str(tmp_path / "whole_checkpoints"))
    finished(alone)
    return shards.samples(out(alone), layer=3)


def count_committed(store: ObjectStore) -> int:
    """Count the committed shards, settled or not, when no worker runs any more."""
    claims = (read_claim(store, shard_of(info.name)) for info in store.list("claims/"))
    unsettled = {claim.done["shard"] for _, claim in filter(None, claims) if claim.done is not None}
    return len(unsettled | {shard_of(info.name) for info in store.list("done/")})


def count_done(store: ObjectStore) -> int:
    """How many shards have a done-manifest."""
    return len(list(store.list("done/")))
