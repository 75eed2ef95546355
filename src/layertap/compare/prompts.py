"""Read the token ids of a dump, and separate samples from padding.

Ids in one row are one sample, unless lengths or offsets say where others begin. In a table, each
row is a sample. A mask marks padding. Without a mask, a run of the same special token at the end of
a row counts as padding, which is harmless: tokens before it do not see it.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np

from layertap.compare.arrange import IdTable, Span, Stored
from layertap.compare.candidates import ModelFacts
from layertap.compare.dump import Limits, Prompt
from layertap.errors import DumpError

IDS = ("token_ids", "input_ids", "tokens", "ids")
MASKS = ("attention_mask", "mask")
LENGTHS = ("lengths", "seq_lens", "sequence_lengths", "num_tokens")
OFFSETS = ("sample_offsets", "offsets", "cu_seqlens", "starts")
NAMED = (*IDS, *MASKS, *LENGTHS, *OFFSETS)

_PADS = 2  # the same special token this often is padding
_MOST_IDS = 1 << 22
_AT_ONCE = 1 << 24


def find_ids(arrays: Mapping[str, Stored], place: str) -> Stored:
    """Find the token ids among arrays; raises DumpError if there are none."""
    named = [arrays[name] for name in IDS if name in arrays and arrays[name].dtype in _INTEGERS]
    if not named:
        raise DumpError(
            f"{place}: has no token ids, and activations are compared at the same tokens; it has"
            f" {', '.join(arrays) or 'nothing'}. Name the ids {' or '.join(IDS[:3])}, as whole numbers, or give"
            " them by --token_ids"
        )
    return named[0]


def id_table(arrays: Mapping[str, Stored], ids: Stored, facts: ModelFacts, limits: Limits, place: str) -> IdTable:
    """Find the samples in the ids, up to `limits`; DumpError if the ids do not fit the model."""
    if ids.dtype not in _INTEGERS or len(ids.shape) not in (1, 2) or 0 in ids.shape:
        raise DumpError(f"{place}: {ids.name} {ids.dtype}{list(ids.shape)} is not a row or a table of token ids")
    rows, columns = ids.shape if len(ids.shape) == 2 else (1, ids.shape[0])
    spans, total = _told_spans(arrays, rows, columns, place) or _padded_spans(arrays, ids, facts, limits, place)
    chosen = spans[: limits.samples]
    prompts = [_prompt(ids, span, number, facts, place) for number, span in enumerate(chosen)]
    return IdTable(rows, columns, len(spans), chosen, prompts, total)


_INTEGERS = {f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)}


def _told_spans(arrays: Mapping[str, Stored], rows: int, columns: int, place: str) -> tuple[list[Span], int] | None:
    """Read the samples from lengths or offsets; None if there are neither."""
    lengths, offsets = _vector(arrays, LENGTHS), _vector(arrays, OFFSETS)
    if rows > 1 or (lengths is None and offsets is None):
        if lengths is None or len(lengths) != rows:
            return None
        return _checked([Span(row, 0, length) for row, length in enumerate(lengths.tolist())], columns, place)
    if offsets is not None:
        ends = offsets if offsets[-1] == columns else np.append(offsets, columns)
    else:
        assert lengths is not None
        ends = np.cumsum([0, *lengths.tolist()])
    return _checked([Span(0, *pair) for pair in pairwise(ends.tolist())], columns, place)


def _padded_spans(
    arrays: Mapping[str, Stored], ids: Stored, facts: ModelFacts, limits: Limits, place: str
) -> tuple[list[Span], int]:
    """Return each row without padding, and the number of tokens of all rows."""
    rows, columns = ids.shape if len(ids.shape) == 2 else (1, ids.shape[0])
    mask = next((arrays[name] for name in MASKS if name in arrays and arrays[name].shape == ids.shape), None)
    first = range(min(rows, limits.samples))
    if mask is None:
        return [_unpadded(ids.read(_row(ids, row)).ravel(), row, facts) for row in first], rows * columns
    spans = [_kept(mask.read(_row(mask, row)).ravel() != 0, row, place) for row in first]
    return spans, _count(mask, max(1, _AT_ONCE // columns))


def _count(mask: Stored, rows: int) -> int:
    """Count the tokens that are not padding, reading this many rows at a time."""
    if len(mask.shape) == 1:
        return int(np.count_nonzero(mask.read((slice(None),))))
    starts = range(0, mask.shape[0], rows)
    return sum(int(np.count_nonzero(mask.read((slice(at, at + rows), slice(None))))) for at in starts)


def _row(array: Stored, row: int) -> tuple[slice, ...]:
    return (slice(None),) if len(array.shape) == 1 else (slice(row, row + 1), slice(None))


def _vector(arrays: Mapping[str, Stored], names: Sequence[str]) -> np.ndarray | None:
    found = (arrays[name] for name in names if name in arrays and arrays[name].dtype in _INTEGERS)
    array = next((one for one in found if len(one.shape) == 1 and one.shape[0] > 0), None)
    return None if array is None else array.read((slice(None),)).astype(np.int64)


def _checked(spans: list[Span], columns: int, place: str) -> tuple[list[Span], int]:
    wrong = next((span for span in spans if not 0 <= span.start <= span.stop <= columns), None)
    if wrong is not None:
        raise DumpError(
            f"{place}: its lengths or offsets give a sample the tokens {wrong.start} to {wrong.stop}, of {columns}"
        )
    kept = [span for span in spans if span.stop > span.start]
    return kept, sum(span.stop - span.start for span in kept)


def _kept(kept: np.ndarray, row: int, place: str) -> Span:
    at = np.flatnonzero(kept)
    if not len(at) or at[-1] - at[0] + 1 != len(at):
        raise DumpError(
            f"{place}: row {row} of the attention mask is not one run of tokens, with padding at its ends alone"
        )
    return Span(row, int(at[0]), int(at[-1]) + 1)


def _unpadded(ids: np.ndarray, row: int, facts: ModelFacts) -> Span:
    start, stop = 0, len(ids)
    for_start, for_end = _run(ids), _run(ids[::-1])
    if for_end >= _PADS and int(ids[-1]) in facts.special_ids:
        stop -= for_end
    if for_start >= _PADS and int(ids[0]) in facts.special_ids:
        start = for_start
    return Span(row, start, stop) if start < stop else Span(row, 0, len(ids))


def _run(ids: np.ndarray) -> int:
    """Count how many of the first ids are equal."""
    other = np.flatnonzero(ids != ids[0])
    return int(other[0]) if len(other) else len(ids)


def _prompt(ids: Stored, span: Span, number: int, facts: ModelFacts, place: str) -> Prompt:
    row, start, stop = span
    begin, end = (start if len(ids.shape) == 1 else 0), min(stop, start + _MOST_IDS)
    values = ids.read((*_row(ids, row)[:-1], slice(begin, end))).ravel().astype(np.int64)
    start -= begin
    low, high = int(values[start:].min()), int(values[start:].max())
    if low < 0 or high >= facts.vocab_size:
        raise DumpError(
            f"{place}: token id {low if low < 0 else high} does not belong to {facts.name}, which has 0 to"
            f" {facts.vocab_size - 1}: the ids are of another tokenizer, or not ids"
        )
    before = values[:start] if len(ids.shape) == 2 else values[:0]
    return Prompt(f"sample {number}", values[start:].astype(np.int32), before.astype(np.int32))
