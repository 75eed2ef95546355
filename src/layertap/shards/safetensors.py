"""The safetensors format: one file for each shard, with the tokens of all samples in sequence.

    residual.12       [tokens, width]    BF16, F16, F32, F8_E4M3 or I8; one for each tap, named by
                                         its site and layer
    sample_offsets    [samples + 1]      I64, sample i has the rows offsets[i] : offsets[i + 1]
    sample_idx        [samples]          I64
    norms             [taps, tokens]     F32, in the order of the taps (core/columns.py)
    scales            [taps, tokens]     F32, only with F8_E4M3 and I8 (quantised.py)
    token_ids, ...    [tokens]           the columns (core/columns.py)

The first tap begins at a multiple of 64 bytes in the file. After the taps, wider types come before
narrower ones, because torch maps a tensor only at a multiple of the size of its numbers. Facts
about samples in words (task, origin, preview) are JSON in `__metadata__`, where safetensors allows
only strings. Nothing is compressed. So you can map a file into memory, or read a range of one tap
from a bucket.

Version 1 had a file for each tap. With 80 layers that was 81 files, 81 syncs and 81 manifest
entries for each shard. You could copy a layer by itself; a range of the one file does the same.
"""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from layertap.core.sample import Activation, Sample
from layertap.core.strict_json import dump_json
from layertap.core.taps import Tap
from layertap.shards.quantised import is_quantised
from layertap.shards.tensors import Sink, TensorStream, write_tensors
from layertap.shards.values import TapValues

FORMAT = "layertap-activations"
FORMAT_VERSION = "2"
TOLD = ("task_id", "origin", "text_preview")
"""The facts about each sample that are words."""


def tensor_name(tap: Tap) -> str:
    """Return the name of a tap's activations in the file."""
    return f"{tap.site}.{tap.layer}"


def write_safetensors(
    sink: Sink, samples: Sequence[Sample], values: Mapping[Tap, TapValues], dtype: np.dtype, about: Mapping[str, str]
) -> None:
    """Write a shard of `samples`, and take their values of `dtype` tap after tap.

    `about` holds facts about the run for the metadata. Raises StorageError where the header would
    be too large.
    """
    lengths = [sample.tokens for sample in samples]
    tokens = sum(lengths)
    norms: list[np.ndarray] = []  # complete when the last tap is written
    scales: list[np.ndarray] = []
    a_token = np.dtype(np.float32), (len(values), tokens)
    tensors = {
        **{
            tensor_name(tap): TensorStream(dtype, (tokens, it.width), _activations(it, norms, scales))
            for tap, it in values.items()
        },
        "sample_offsets": TensorStream.of(np.cumsum([0, *lengths], dtype=np.int64)),
        "sample_idx": TensorStream.of(np.array([sample.sample_idx for sample in samples], np.int64)),
        "norms": TensorStream(*a_token, norms),
        **({"scales": TensorStream(*a_token, scales)} if is_quantised(dtype) else {}),
        **{name: TensorStream.joined([sample.columns[name] for sample in samples]) for name in samples[0].columns},
    }
    write_tensors(sink, tensors, _metadata(samples, about))


def _activations(values: TapValues, norms: list[np.ndarray], scales: list[np.ndarray]) -> Iterator[Activation]:
    """Yield the activations, and add their norms, and scales if they have some, to the lists."""
    for it in values.samples:
        norms.append(it.norms)
        if it.scales is not None:
            scales.append(it.scales)
        yield it.activation


def _metadata(samples: Sequence[Sample], about: Mapping[str, str]) -> dict[str, str]:
    words = [{name: _plain(getattr(sample, name)) for name in TOLD} for sample in samples]
    return {"format": FORMAT, "format_version": FORMAT_VERSION, **about, "samples": dump_json(words)}


def _plain(value: object) -> object:
    return dict(value) if isinstance(value, Mapping) else value
