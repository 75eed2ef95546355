"""Small output folders, written by the real writer, and the means to damage them."""

import gzip
import json
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pytest
import shards

from layertap.check.verify import verify
from layertap.core.columns import token_columns
from layertap.core.sample import Sample
from layertap.core.taps import Tap
from layertap.objects import open_store
from layertap.objects.files import atomic_write, file_crc32c
from layertap.shards.form import ShardFormat
from layertap.shards.manifest import Manifest, fingerprint_of
from layertap.shards.tensors import TensorStream, parse_tensors, write_tensors
from layertap.shards.writer import ShardWriter

LAYERS = (0, 2)
HIDDEN = 4
SPECIAL_IDS = (3, 5)
RESIDUAL = ("residual",)
PART = "manifest/part_0001.jsonl"


def taps(sites: Sequence[str] = RESIDUAL) -> dict[Tap, int]:
    """Two layers at each site, all of one width."""
    return {Tap(layer, site): HIDDEN for site in sites for layer in LAYERS}


def sample(
    index: int, tokens: int = 3, sites: Sequence[str] = RESIDUAL, widths: dict[Tap, int] | None = None
) -> Sample:
    """A sample whose content depends on its number alone."""
    rng = np.random.default_rng(index)
    return Sample(
        sample_idx=index,
        task_id=f"task{index // 2}",
        text_preview=f"prompt {index}",
        origin={"prediction": index % 2, "augmentation": {"colors": (0, 2, 1)}},
        columns=token_columns(rng.integers(0, 1000, tokens, np.int32), frozenset(SPECIAL_IDS)),
        activations={
            tap: rng.standard_normal((tokens, width), np.float32)
            for tap, width in sorted((widths or taps(sites)).items(), key=lambda item: item[0].layer)
        },
    )


def three_shards(sites: Sequence[str] = RESIDUAL, widths: dict[Tap, int] | None = None) -> list[list[Sample]]:
    """Three shards of two samples of unequal lengths."""
    samples = [sample(index, tokens, sites, widths) for index, tokens in enumerate((3, 5, 3, 4, 2, 6))]
    return [samples[begin : begin + 2] for begin in (0, 2, 4)]


def shard_format(
    sites: Sequence[str] = RESIDUAL,
    dtype: str = "float32",
    compress: bool = True,
    name: str = "pickle",
    keep_nonfinite: bool = False,
) -> ShardFormat:
    return ShardFormat(taps(sites), np.dtype(dtype), compress, name, keep_nonfinite)


def manifest(form: ShardFormat, **changed: Any) -> Manifest:
    """The manifest of a run before its first shard."""
    identity = {"layers": list(form.layers), "storage": {"dtype": form.dtype.name}}
    fields = {
        "fingerprint": fingerprint_of(identity),
        "identity": identity,
        "config": {"batch_size": 4},
        "worker_id": 0,
        "model_path": "models/tiny",
        "model_type": "qwen2",
        "special_ids": SPECIAL_IDS,
        "format": form.name,
        "taps": form.taps,
        "storage_dtype": form.stored_as,
    }
    return Manifest(**(fields | changed))


def write(folder: Path, contents: Sequence[Sequence[Sample]], form: ShardFormat) -> None:
    """A complete run with these shards."""
    writer = ShardWriter(open_store(str(folder)), manifest(form), form, lambda _: None)
    for number, samples in enumerate(contents, 1):
        writer.commit(samples, {"record": number}, complete=number == len(contents))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A sound output folder of three shards and one site."""
    write(tmp_path, three_shards(), shard_format())
    return tmp_path


@pytest.fixture
def two_sites(tmp_path: Path) -> Path:
    """A sound output folder of three shards and two sites."""
    sites = ("residual", "mlp")
    write(tmp_path, three_shards(sites), shard_format(sites))
    return tmp_path


def findings(folder: Path) -> list[str]:
    """Return what `verify` finds."""
    report = verify(folder)
    assert report.sound == (not report.findings)
    return list(report.findings)


def the_finding(folder: Path) -> str:
    """Return the only finding of `verify`."""
    (finding,) = findings(folder)
    return finding


def edit_manifest(folder: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    """Let `edit` change the manifest, with its shards as a list in it.

    Sums and checksum are then corrected.
    """
    path, part = folder / "metadata.json", folder / PART
    document = json.loads(path.read_text())
    document["shards"] = [json.loads(line) for line in part.read_text().splitlines()]
    edit(document)
    listed = document.pop("shards")
    document["totals"] = {"shards": len(listed)} | {
        name: sum(shard[name] for shard in listed) for name in ("samples", "tokens")
    }
    if nonfinite := sum(shard.get("nonfinite", 0) for shard in listed):
        document["totals"]["nonfinite"] = nonfinite
    part.write_text("".join(json.dumps(shard) + "\n" for shard in listed))
    document["shards_crc32c"] = f"{google_crc32c.value(part.read_bytes()):08x}"
    path.write_text(json.dumps(document))


def rewrite(folder: Path, name: str, edit: Callable[[dict[int, Any]], object]) -> None:
    """Let `edit` change a shard's content. The manifest then gets its new size and checksum."""
    content = shards.read(folder / name)
    edit(content)
    dump(folder / name, content)
    believe(folder, name)


def rewrite_tensors(folder: Path, name: str, edit: Callable[[dict[str, np.ndarray], dict[str, str]], object]) -> None:
    """Let `edit` change tensors and metadata of a safetensors file.

    The manifest then gets its new size and checksum.
    """
    edit_tensors(folder / name, edit)
    believe(folder, name)


def edit_tensors(path: Path, edit: Callable[[dict[str, np.ndarray], dict[str, str]], object]) -> None:
    """Let `edit` change tensors and metadata of a safetensors file."""
    file = parse_tensors(path.read_bytes(), path.name)
    tensors, metadata = {key: value.copy() for key, value in file.tensors.items()}, dict(file.metadata)
    edit(tensors, metadata)
    with atomic_write(path) as sink:
        write_tensors(sink, {key: TensorStream.of(value) for key, value in tensors.items()}, metadata)


def believe(folder: Path, name: str) -> None:
    """Put the size and checksum that the file has into the manifest."""
    edit_manifest(folder, lambda document: tell(folder, document["shards"], name))


def tell(folder: Path, listed: list[dict[str, Any]], name: str) -> None:
    """Put the size and checksum that the file has into a list of shards."""
    for file in (file for shard in listed for file in shard["files"]):
        if file["path"] == name:
            file.update(bytes=(folder / name).stat().st_size, crc32c=file_crc32c(folder / name))


def dump(path: Path, content: object) -> None:
    """Write any content as shards, in the formats of docs/formats.md."""
    with gzip.open(path, "wb") if path.suffix == ".gz" else path.open("wb") as file:
        PlainPickler(file, 5).dump(content)


class PlainPickler(pickle.Pickler):
    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, np.ndarray):
            return np.ndarray, (obj.shape, obj.dtype.str, pickle.PickleBuffer(bytearray(obj.tobytes())))
        return NotImplemented
