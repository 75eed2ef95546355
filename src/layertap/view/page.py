"""A shard, or a sample, as lines for a terminal.

Text from a dataset is shown with its unprintable characters escaped: what is looked at cannot move
the cursor.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from math import ceil

import numpy as np

from layertap.core.columns import FIRST, SINK, SINK_FACTOR, SPECIAL
from layertap.core.selection import ALL
from layertap.core.table import table
from layertap.core.taps import Tap
from layertap.shards.manifest import listed_ranges
from layertap.view.decoding import Decoder
from layertap.view.shard import SampleSeen, ShardSeen, TapSeen

_TEXT_WIDTH = 64
_MOST_COLUMNS = 8  # of norms, beside each token

_NORMS = ("site", "layer", "min norm", "median", "max", "in sample", "at token", "sinks", "not finite")


def describe_shard(seen: ShardSeen, decoder: Decoder) -> str:
    """The whole shard: a line a sample, a line a tap."""
    return "\n".join((*_head(seen), "", *_samples(seen, decoder), "", *_norms(seen)))


def describe_sample(seen: ShardSeen, decoder: Decoder, max_tokens: int) -> str:
    """Its one sample: how it was made, its text, a line a tap, a line a token."""
    (sample,) = seen.samples
    tokens = len(sample.token_ids)
    lines = (
        *_head(seen),
        f"sample {sample.sample_idx} of task {_visible(sample.words.task_id)}: {tokens} tokens,"
        f" shape ({tokens}, {_widths(seen)})",
        f"origin: {_visible(repr(dict(sample.words.origin)))}",
        "",
        f"text, {decoder.remark}:",
        _visible(decoder.text(sample), keep="\n"),
        "",
        *_norms(seen),
        "",
        *_tokens(seen, sample, decoder, max_tokens),
    )
    return "\n".join(lines)


def _head(seen: ShardSeen) -> Iterator[str]:
    manifest, entry = seen.manifest, seen.entry
    state = "complete" if manifest.complete else "not complete yet"
    yield (
        f"shard {entry.index} of {len(manifest.shards)} (the run is {state}): {entry.samples} samples"
        f" ({listed_ranges(entry.sample_idx)}), {entry.tokens} tokens"
    )
    yield (
        f"{manifest.format}, {manifest.storage_dtype} [tokens, {_widths(seen)}], layers"
        f" {', '.join(map(str, manifest.layers))}, sites {', '.join(manifest.sites)}, of {manifest.model_path}"
    )
    if ALL not in manifest.keep_tokens:
        yield f"only these tokens were kept, at their positions in the prompt: {', '.join(manifest.keep_tokens)}"


def _widths(seen: ShardSeen) -> str:
    """The width of the taps that are shown, or their widths."""
    return "/".join(map(str, dict.fromkeys(seen.manifest.taps[tap] for tap in seen.taps)))


def _samples(seen: ShardSeen, decoder: Decoder) -> Iterator[str]:
    rows = [("sample", "task", "tokens", "shape", "text")]
    for sample in seen.samples:
        tokens = len(sample.token_ids)
        shape = f"({tokens}, {_widths(seen)})"
        text = _shortened(decoder.text(sample))
        rows.append((str(sample.sample_idx), _visible(sample.words.task_id), str(tokens), shape, text))
    yield table(rows, left=(1, 4))
    yield f"text: {decoder.remark}"


def _norms(seen: ShardSeen) -> Iterator[str]:
    yield table([_NORMS, *(_norm_row(tap, at_tap, seen.samples) for tap, at_tap in seen.taps.items())])
    flags = np.concatenate(next(iter(seen.taps.values())).flags)
    first, special = (int(((flags & bit) > 0).sum()) for bit in (FIRST, SPECIAL))
    yield (
        f"{len(flags)} tokens: {first} first of a sample, {special} special;"
        f" a sink's norm is over {SINK_FACTOR:g} times the usual norm"
    )


def _norm_row(tap: Tap, seen: TapSeen, samples: Sequence[SampleSeen]) -> tuple[str, ...]:
    norms, flags = np.concatenate(seen.norms), np.concatenate(seen.flags)
    finite = np.isfinite(norms)
    sinks, strange = (str(int(found.sum())) for found in ((flags & SINK) > 0, ~finite))
    if not finite.any():
        return tap.site, str(tap.layer), *("-" for _ in range(5)), sinks, strange
    top = int(np.argmax(np.where(finite, norms, -1)))
    begins = np.cumsum([0, *map(len, seen.norms)])
    holder = next(number for number, (begin, end) in enumerate(pairwise(begins)) if begin <= top < end)
    numbers = (float(found(norms[finite])) for found in (np.min, np.median, np.max))
    place = (str(samples[holder].sample_idx), str(samples[holder].positions[top - begins[holder]]))
    return tap.site, str(tap.layer), *(f"{number:.5g}" for number in numbers), *place, sinks, strange


def _tokens(seen: ShardSeen, sample: SampleSeen, decoder: Decoder, max_tokens: int) -> Iterator[str]:
    """A line a token, with its norm at some taps; what is left out is said."""
    count = len(sample.token_ids)
    taps = list(seen.taps)[:: ceil(len(seen.taps) / _MOST_COLUMNS)]
    shown = list(range(count)) if max_tokens == 0 or max_tokens >= count else _ends(count, max_tokens)
    rows = [("token", "id", "text", "flags", *(f"{tap.site} {tap.layer}" for tap in taps))]
    rows += [_token_row(seen, sample, decoder, taps, token) for token in shown]
    yield table(rows, left=(2, 3))
    yield "norms of each token; * marks a sink"
    if len(shown) < count:
        yield f"{count - len(shown)} tokens in the middle are left out; --max_tokens 0 lists all"
    if len(taps) < len(seen.taps):
        yield f"{len(taps)} of {len(seen.taps)} layers and sites have a column; --layer and --site choose others"


def _ends(count: int, most: int) -> list[int]:
    return [*range(most - most // 2), *range(count - most // 2, count)]


def _token_row(
    seen: ShardSeen, sample: SampleSeen, decoder: Decoder, taps: Sequence[Tap], token: int
) -> tuple[str, ...]:
    token_id = int(sample.token_ids[token])
    text = decoder.token(token_id)
    flags = int(seen.taps[taps[0]].flags[0][token])
    named = [name for name, bit in (("first", FIRST), ("special", SPECIAL)) if flags & bit]
    return (
        str(sample.positions[token]),
        str(token_id),
        "" if text is None else repr(text),
        " ".join(named),
        *(_norm(seen.taps[tap], token) for tap in taps),
    )


def _norm(seen: TapSeen, token: int) -> str:
    return f"{seen.norms[0][token]:.5g}{'*' if seen.flags[0][token] & SINK else ' '}"


def _shortened(text: str) -> str:
    """Its beginning and its end: prompts of a run begin alike."""
    half = (_TEXT_WIDTH - 3) // 2
    return repr(text if len(text) <= _TEXT_WIDTH else f"{text[:half]} … {text[-half:]}")


def _visible(text: str, keep: str = "") -> str:
    return "".join(char if char.isprintable() or char in keep else repr(char)[1:-1] for char in text)
