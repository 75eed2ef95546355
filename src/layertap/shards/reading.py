"""A shard file read back into samples, the same for both formats; what does not fit is said, not raised.

For `verify` and `inspect`, which want to know what is wrong with a file rather than to be quick.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from io import BytesIO
from typing import Any, cast

import numpy as np

from layertap.core.taps import Site
from layertap.errors import DamageError
from layertap.shards.manifest import Manifest, StoredFile
from layertap.shards.pickles import load_pickle
from layertap.shards.safetensors import TENSORS, read_safetensors
from layertap.shards.tensors import ALIGNMENT, TensorFile


@dataclass(frozen=True, eq=False)
class ReadSample:
    """A sample at one layer and site, as a file tells it."""

    sample_idx: int
    task_id: str
    text_preview: str
    origin: Mapping[str, Any]
    shape: tuple[int, ...]
    """What the file says that the activation's shape is."""
    token_ids: np.ndarray
    activation: np.ndarray
    flags: np.ndarray


@dataclass(frozen=True, eq=False)
class ReadLayer:
    """All samples of a shard at one layer and site; `name` says where they stand."""

    layer: int
    site: Site
    name: str
    samples: list[ReadSample]


def read_layers(content: bytes, manifest: Manifest, file: StoredFile) -> tuple[list[str], list[ReadLayer]]:
    """What is wrong with the form of the file, and its layers as far as they can be told.

    Raises DamageError where it is no shard file of the run's format at all.
    """
    if manifest.format == "pickle":
        return [], _read_pickle(content, file)
    return _read_safetensors(content, manifest, file)


def wrong_form(manifest: Manifest, sample: ReadSample) -> str | None:
    """What is wrong with the shapes and the dtype of a sample, if anything is."""
    activation = sample.activation
    expected = (len(sample.token_ids), manifest.hidden_size)
    if activation.shape != expected:
        return f"activation has shape {activation.shape}, should have {expected}"
    if sample.shape != expected:
        return f"field shape says {sample.shape}, should say {expected}"
    if activation.dtype.name != manifest.storage_dtype:
        return f"activation is {activation.dtype.name}, should be {manifest.storage_dtype}"
    if len(sample.flags) != len(sample.token_ids):
        return f"has {len(sample.flags)} flags, should have {len(sample.token_ids)}"
    return None


def _read_pickle(content: bytes, file: StoredFile) -> list[ReadLayer]:
    return [
        ReadLayer(
            layer,
            cast(Site, file.site),
            f"{file.path}, layer {layer}",
            [ReadSample(**{name: entry[name] for name in _FIELDS}) for entry in entries],
        )
        for layer, entries in load_pickle(BytesIO(content), file.path).items()
    ]


_FIELDS = tuple(field.name for field in fields(ReadSample))


def _read_safetensors(raw: bytes, manifest: Manifest, file: StoredFile) -> tuple[list[str], list[ReadLayer]]:
    content = read_safetensors(raw, file.path)
    findings = [*_wrong_metadata(content, manifest, file), *_wrong_tensors(content)]
    findings = findings or list(_wrong_offsets(content))
    if findings:
        return [f"{file.path}: {finding}" for finding in findings], []
    try:
        samples = list(_samples(content))
    except (ValueError, TypeError, KeyError) as error:
        raise DamageError(f"{file.path}: its list of samples in words is garbled: {error!r}") from error
    return [], [ReadLayer(cast(int, file.layer), cast(Site, file.site), file.path, samples)]


def _wrong_metadata(content: TensorFile, manifest: Manifest, file: StoredFile) -> Iterator[str]:
    expected = {
        "fingerprint": manifest.fingerprint,
        "layer": str(file.layer),
        "site": file.site,
        "dtype": manifest.storage_dtype,
    }
    for name, value in expected.items():
        if content.metadata.get(name) != value:
            yield f"metadata says {name} {content.metadata.get(name)}, should say {value}"
    if content.data_start % ALIGNMENT:
        yield f"its data begins at byte {content.data_start}, which is not a multiple of {ALIGNMENT}"


def _wrong_tensors(content: TensorFile) -> Iterator[str]:
    tokens, samples = (len(content.tensors[name]) if content.tensors[name].ndim else 0 for name in _COUNTED)
    expected = dict(zip(TENSORS[1:], ("int32", "int32", "int64", "int64", "uint8"), strict=True))
    for name, dtype in expected.items():
        shape = {"sample_offsets": (samples + 1,), "sample_idx": (samples,)}.get(name, (tokens,))
        tensor = content.tensors[name]
        if (tensor.dtype.name, tensor.shape) != (dtype, shape):
            yield f"{name} is {tensor.dtype.name} {tensor.shape}, should be {dtype} {shape}"


_COUNTED = ("activations", "sample_idx")


def _wrong_offsets(content: TensorFile) -> Iterator[str]:
    offsets, positions = content.tensors["sample_offsets"], content.tensors["positions"]
    lengths = np.diff(offsets)
    if offsets[0] != 0 or offsets[-1] != len(positions) or (lengths < 0).any():
        yield f"sample_offsets do not rise from 0 to the {len(positions)} tokens"
    elif not np.array_equal(positions, np.arange(len(positions)) - np.repeat(offsets[:-1], lengths)):
        yield "positions do not count each sample's tokens from 0"


def _samples(content: TensorFile) -> Iterator[ReadSample]:
    offsets = content.tensors["sample_offsets"]
    told = json.loads(content.metadata["samples"])
    spans = zip(content.tensors["sample_idx"], told, offsets[:-1], offsets[1:], strict=True)
    for sample_idx, words, begin, end in spans:
        yield ReadSample(
            sample_idx=int(sample_idx),
            task_id=words["task_id"],
            text_preview=words["text_preview"],
            origin=words["origin"],
            shape=(end - begin, *content.tensors["activations"].shape[1:]),
            **{kind: content.tensors[name][begin:end] for kind, name in _PER_TOKEN.items()},
        )


_PER_TOKEN = {"token_ids": "token_ids", "activation": "activations", "flags": "flags"}
