"""The safetensors format: one file per (layer, site, shard), all its tokens one after the other.

    activations     [tokens, hidden]   BF16, F16 or F32; begins at a multiple of 64 bytes in the file
    token_ids       [tokens]           I32
    positions       [tokens]           I32, the token's place in its sample, from 0
    sample_offsets  [samples + 1]      I64, sample i has the tokens sample_offsets[i] : sample_offsets[i + 1]
    sample_idx      [samples]          I64
    flags           [tokens]           U8 (flags.py)

Everything but activations and sink flags is repeated in each file, at 9 bytes a token where the activations have some
thousand: so a file stands for itself, and a copy of one layer is worth something. What is told of samples in words
(task, origin, preview) is JSON in `__metadata__`, whose values safetensors wants to be strings.

Nothing is compressed, so that files can be mapped into memory and read by ranges from a bucket.
"""

import json
from collections.abc import Mapping, Sequence

import numpy as np

from layertap.core.taps import Tap
from layertap.errors import DamageError
from layertap.objects.files import Checksummed
from layertap.shards.flags import Flags
from layertap.shards.samples import StoredSample
from layertap.shards.tensors import TensorFile, TensorStream, parse_tensors, write_tensors

FORMAT = "layertap-activations"
FORMAT_VERSION = "1"
TENSORS = ("activations", "token_ids", "positions", "sample_offsets", "sample_idx", "flags")
_TOLD = ("task_id", "origin", "text_preview")


def write_safetensors(
    sink: Checksummed,
    samples: Sequence[StoredSample],
    tap: Tap,
    dtype: np.dtype,
    flags: Sequence[Flags],
    about: Mapping[str, str],
) -> None:
    """Write the activations of `samples` at `tap` as `dtype`; `about` the run goes into the metadata.

    Raises StorageError where a value does not fit into float16.
    """
    lengths = [sample.tokens for sample in samples]
    hidden = samples[0].activations[tap].shape[1]
    per_token = {
        "token_ids": [sample.token_ids for sample in samples],
        "positions": [np.arange(length, dtype=np.int32) for length in lengths],
    }
    tokens = sum(lengths)
    tensors = {
        "activations": TensorStream(dtype, (tokens, hidden), (sample.stored(tap, dtype) for sample in samples)),
        **{name: TensorStream(np.dtype(np.int32), (tokens,), values) for name, values in per_token.items()},
        "sample_offsets": TensorStream.of(np.cumsum([0, *lengths], dtype=np.int64)),
        "sample_idx": TensorStream.of(np.array([sample.sample_idx for sample in samples], np.int64)),
        "flags": TensorStream(np.dtype(np.uint8), (tokens,), flags),
    }
    write_tensors(sink, tensors, _metadata(samples, tap, dtype, about))


def _metadata(samples: Sequence[StoredSample], tap: Tap, dtype: np.dtype, about: Mapping[str, str]) -> dict[str, str]:
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        **about,
        "layer": str(tap.layer),
        "site": tap.site,
        "dtype": dtype.name,
        "samples": json.dumps([{name: _plain(getattr(sample, name)) for name in _TOLD} for sample in samples]),
    }


def _plain(value: object) -> object:
    return dict(value) if isinstance(value, Mapping) else value


def read_safetensors(content: bytes, name: str) -> TensorFile:
    """Read a shard file `name` back from its content, without a copy.

    Raises DamageError where it does not hold the tensors and the metadata that `write_safetensors` writes; whether
    they are the right ones is for `verify` to find out.
    """
    file = parse_tensors(content, name)
    if tuple(file.tensors) != TENSORS:
        raise DamageError(f"{name}: holds the tensors {', '.join(file.tensors)}, should hold {', '.join(TENSORS)}")
    if (file.metadata.get("format"), file.metadata.get("format_version")) != (FORMAT, FORMAT_VERSION):
        raise DamageError(f"{name}: is not a shard of {FORMAT} {FORMAT_VERSION}")
    return file
