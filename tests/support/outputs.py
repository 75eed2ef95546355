"""Small output folders, written by the real writer, and the means to damage them."""

import gzip
import json
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import shards

from layertap.check.verify import verify
from layertap.core.taps import Tap
from layertap.objects.files import Checksummed, atomic_write, file_crc32c
from layertap.shards.manifest import Manifest, fingerprint_of
from layertap.shards.pickles import write_pickle
from layertap.shards.samples import StoredSample
from layertap.shards.tensors import TensorStream, parse_tensors, write_tensors
from layertap.shards.writer import ShardFormat, ShardWriter

LAYERS = (0, 2)
HIDDEN = 4
SPECIAL_IDS = (3, 5)
RESIDUAL = ("residual",)


def sample(index: int, tokens: int = 3, sites: Sequence[str] = RESIDUAL) -> StoredSample:
    """A sample whose content depends on its number alone."""
    rng = np.random.default_rng(index)
    return StoredSample(
        sample_idx=index,
        task_id=f"task{index // 2}",
        text_preview=f"prompt {index}",
        origin={"prediction": index % 2, "augmentation": {"colors": (0, 2, 1)}},
        token_ids=rng.integers(0, 1000, tokens, np.int32),
        activations={
            Tap(layer, site): rng.standard_normal((tokens, HIDDEN), np.float32) for layer in LAYERS for site in sites
        },
    )


def three_shards(sites: Sequence[str] = RESIDUAL) -> list[list[StoredSample]]:
    """Three shards of two samples of unequal lengths."""
    samples = [sample(index, tokens, sites) for index, tokens in enumerate((3, 5, 3, 4, 2, 6))]
    return [samples[begin : begin + 2] for begin in (0, 2, 4)]


def shard_format(
    sites: Sequence[str] = RESIDUAL, dtype: str = "float32", compress: bool = True, name: str = "pickle"
) -> ShardFormat:
    return ShardFormat(LAYERS, tuple(sites), HIDDEN, np.dtype(dtype), compress, name)


def pickle_residual(
    sink: Checksummed,
    samples: Sequence[StoredSample],
    dtype: str | np.dtype = "float32",
    *,
    layers: Sequence[int] = LAYERS,
    compress: bool = True,
) -> None:
    """`write_pickle` with no flag set."""
    flags = [np.zeros(sample.tokens, np.uint8) for sample in samples]
    at_taps = {Tap(layer, "residual"): flags for layer in layers}
    write_pickle(sink, samples, layers, "residual", np.dtype(dtype), at_taps, compress=compress)


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
        "layers": form.layers,
        "sites": form.sites,
        "hidden_size": form.hidden_size,
        "storage_dtype": form.dtype.name,
    }
    return Manifest(**(fields | changed))


def write(folder: Path, contents: Sequence[Sequence[StoredSample]], form: ShardFormat) -> None:
    """A complete run with these shards."""
    writer = ShardWriter(folder, manifest(form), form, lambda _: None)
    for number, samples in enumerate(contents, 1):
        writer.commit(list(samples), {"record": number}, complete=number == len(contents))


def findings(folder: Path) -> list[str]:
    """What `verify` finds."""
    report = verify(folder)
    assert report.sound == (not report.findings)
    return list(report.findings)


def the_finding(folder: Path) -> str:
    """The only thing that `verify` finds."""
    (finding,) = findings(folder)
    return finding


def edit_manifest(folder: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    """Let `edit` change the manifest; the totals are made to add up again."""
    path = folder / "metadata.json"
    document = json.loads(path.read_text())
    edit(document)
    listed = document["shards"]
    document["totals"] = {"shards": len(listed)} | {
        name: sum(shard[name] for shard in listed) for name in ("samples", "tokens")
    }
    path.write_text(json.dumps(document))


def rewrite(folder: Path, name: str, edit: Callable[[dict[int, Any]], object]) -> None:
    """Let `edit` change a shard's content; the manifest is made to tell its new size and checksum."""
    content = shards.read(folder / name)
    edit(content)
    dump(folder / name, content)
    believe(folder, name)


def rewrite_tensors(folder: Path, name: str, edit: Callable[[dict[str, np.ndarray], dict[str, str]], object]) -> None:
    """Let `edit` change tensors and metadata of a safetensors file; the manifest tells its new size and checksum."""
    file = parse_tensors((folder / name).read_bytes(), name)
    tensors, metadata = {key: value.copy() for key, value in file.tensors.items()}, dict(file.metadata)
    edit(tensors, metadata)
    with atomic_write(folder / name) as sink:
        write_tensors(sink, {key: TensorStream.of(value) for key, value in tensors.items()}, metadata)
    believe(folder, name)


def believe(folder: Path, name: str) -> None:
    """Make the manifest tell the size and checksum that the file has."""

    def edit(document: dict[str, Any]) -> None:
        for file in (file for shard in document["shards"] for file in shard["files"]):
            if file["path"] == name:
                file.update(bytes=(folder / name).stat().st_size, crc32c=file_crc32c(folder / name))

    edit_manifest(folder, edit)


def dump(path: Path, content: object) -> None:
    """Write any content in the way of shards, as docs/formats.md has it."""
    with gzip.open(path, "wb") if path.suffix == ".gz" else path.open("wb") as file:
        _PlainPickler(file, 5).dump(content)


class _PlainPickler(pickle.Pickler):
    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, np.ndarray):
            return np.ndarray, (obj.shape, obj.dtype.str, pickle.PickleBuffer(bytearray(obj.tobytes())))
        return NotImplemented
