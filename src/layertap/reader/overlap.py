"""Detect output folders that hold the same samples.

`sample_idx` alone does not decide it, because each stream of a dataset counts from 0
(docs/fleet.md). So if two folders share numbers, the sample with the smallest shared number
decides, and as little as possible is read:

    the first shards have the same checksums                   the same: a copy, or a repeated run
    else, one fingerprint and other names of the dataset       other samples: two streams
    else the task, its augmentation and the tokens are read    the same, or not

This also finds the same data that was extracted twice, with other settings or into another format.
If two folders keep different tokens of one sample, they are the same if they share a position.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise

import numpy as np

from layertap.errors import DamageError, UsageError
from layertap.reader.sources import Source
from layertap.shards.manifest import join_ranges

_DATASET = ("dataset_path", "dataset_name", "dataset_config", "dataset_split", "column_name")
Described = tuple[str, str, Mapping[int, int]]
"""A sample: its task, its origin, and its token ids by position."""
Describe = Callable[[int, int], Described]
"""Describes a sample, given the number of its source and its `sample_idx`."""


def require_each_once(place: str, sources: Sequence[Source], describe: Describe) -> None:
    """Raise UsageError if two sources hold the same sample, DamageError if one repeats a number."""
    spans = [_span(place, source) for source in sources]
    for one, other, shared in _sharing(spans):
        if _same(sources, one, other, shared, describe):
            names = f"{sources[one].name or '.'} and {sources[other].name or '.'}"
            raise UsageError(
                f"{place}: {names} hold the same samples, such as sample_idx {shared}; a trainer would see them twice."
                " Open only one of them, or move one away"
            )


_Ranges = tuple[tuple[int, int], ...]


def _span(place: str, source: Source) -> _Ranges:
    """Return the sample numbers of a source, as few ascending ranges."""
    ranges = join_ranges(pair for shard in source.manifest.shards for pair in shard.sample_idx)
    for (_, last), (first, _) in pairwise(ranges):
        if first <= last:
            raise DamageError(
                f"{place}/{source.name}: has sample {first} twice; `layertap verify` says in which shards"
            )
    return ranges


def _sharing(spans: Sequence[_Ranges]) -> Iterator[tuple[int, int, int]]:
    """Yield each two sources that share numbers, with the smallest shared number."""
    order = sorted((number for number, ranges in enumerate(spans) if ranges), key=lambda number: spans[number][0])
    for place, one in enumerate(order):
        for other in order[place + 1 :]:
            if spans[other][0][0] > spans[one][-1][1]:
                break
            shared = _smallest_shared(spans[one], spans[other])
            if shared is not None:
                yield one, other, shared


def _smallest_shared(one: _Ranges, other: _Ranges) -> int | None:
    at = 0
    for first, last in one:
        while at < len(other) and other[at][1] < first:
            at += 1
        if at < len(other) and other[at][0] <= last:
            return max(first, other[at][0])
    return None


def _same(sources: Sequence[Source], one: int, other: int, shared: int, describe: Describe) -> bool:
    a, b = sources[one].manifest, sources[other].manifest
    if [file.crc32c for file in a.shards[0].files] == [file.crc32c for file in b.shards[0].files]:
        return True
    if a.fingerprint == b.fingerprint and any(a.config.get(name) != b.config.get(name) for name in _DATASET):
        return False
    return _same_sample(describe(one, shared), describe(other, shared))


def _same_sample(one: Described, other: Described) -> bool:
    """Return whether both hold a token of one sample; two runs may keep different tokens of it."""
    shared = one[2].keys() & other[2].keys()
    return one[:2] == other[:2] and bool(shared) and all(one[2][place] == other[2][place] for place in shared)


def describe_sample(task_id: str, origin: object, positions: np.ndarray, token_ids: np.ndarray) -> Described:
    """Return what two samples are compared by, in any format."""
    ids = dict(zip(positions.tolist(), token_ids.tolist(), strict=True))
    return task_id, json.dumps(origin, sort_keys=True), ids
