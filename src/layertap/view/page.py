"""A shard, or a sample, as lines for a terminal.

Unprintable characters in text from a dataset are escaped, so that text cannot move the cursor.
"""

from collections.abc import Iterator, Mapping
from math import ceil

import numpy as np

from layertap.core.amounts import amount
from layertap.core.columns import FIRST, NO_LABELS, PREFIX, SINK, SINK_FACTOR, SPECIAL, Norms
from layertap.core.selection import ALL
from layertap.core.table import table
from layertap.core.taps import Tap, name_layers
from layertap.shards.manifest import listed_ranges
from layertap.view.decoding import Decoder
from layertap.view.facts import NormFacts, flag_names, norm_facts, token_labels
from layertap.view.grids import Colours, draw_grids
from layertap.view.shard import MOST_RANGES, SampleSeen, ShardSeen, TapSeen

_TEXT_WIDTH = 64
_MOST_COLUMNS = 8  # columns of norms for each token

_NORMS = ("site", "layer", "min norm", "median", "max", "in sample", "at token", "sinks", "not finite")


def describe_shard(seen: ShardSeen, decoder: Decoder, max_samples: int, top: int = 0) -> str:
    """Describe the whole shard: a line for each tap and for at most `max_samples` samples.

    The `top` tokens by norm follow.
    """
    samples = _samples(seen, decoder, max_samples)
    return "\n".join((*_head(seen), "", *samples, "", *_norms(seen), *_top(seen, decoder, top)))


def describe_sample(seen: ShardSeen, decoder: Decoder, max_tokens: int, top: int = 0, colours: Colours = "none") -> str:
    """Describe one sample: its origin, text and grids, and one line for each tap and token."""
    (sample,) = seen.samples
    tokens = len(sample.token_ids)
    lines = (
        *_head(seen),
        f"sample {sample.sample_idx} of task {_visible(sample.words.task_id)}: {amount(tokens, 'token')},"
        f" shape ({tokens}, {_widths(seen)})",
        f"origin: {_visible(repr(dict(sample.words.origin)))}",
        "",
        f"text, {decoder.remark}:",
        _visible(decoder.text(sample), keep="\n"),
        "",
        *_grids(seen, sample, colours),
        *_norms(seen),
        *_top(seen, decoder, top),
        "",
        *_tokens(seen, sample, decoder, max_tokens),
    )
    return "\n".join(lines)


def _head(seen: ShardSeen) -> Iterator[str]:
    manifest, entry = seen.manifest, seen.entry
    state = "complete" if manifest.complete else "not complete yet"
    yield (
        f"shard {entry.index} of {len(manifest.shards)} (the run is {state}): {amount(entry.samples, 'sample')}"
        f" ({listed_ranges(entry.sample_idx, MOST_RANGES)}), {amount(entry.tokens, 'token')}"
    )
    yield (
        f"{manifest.format}, {manifest.storage_dtype} [tokens, {_widths(seen)}];"
        f" {', '.join(manifest.sites)} of {name_layers(manifest.layers)}; model {manifest.model_path}"
    )
    if ALL not in manifest.keep_tokens:
        yield f"only these tokens were kept, at their positions in the prompt: {', '.join(manifest.keep_tokens)}"


def _widths(seen: ShardSeen) -> str:
    """Write the width of the taps that are shown, or their widths."""
    return "/".join(map(str, dict.fromkeys(seen.manifest.taps[tap] for tap in seen.taps)))


def _samples(seen: ShardSeen, decoder: Decoder, most: int) -> Iterator[str]:
    """A line a sample; what is left out is said."""
    shown = seen.samples[:most] if most else seen.samples
    rows = [("sample", "task", "tokens", "shape", "text")]
    for sample in shown:
        tokens = len(sample.token_ids)
        shape = f"({tokens}, {_widths(seen)})"
        text = _made(sample) or _shortened(decoder.text(sample))
        rows.append((str(sample.sample_idx), _visible(sample.words.task_id), str(tokens), shape, text))
    yield table(rows, left=(1, 4))
    if len(shown) < len(seen.samples):
        yield f"{len(seen.samples) - len(shown)} more are not shown; --max_samples 0 lists all"
    if not all(map(_made, shown)):
        yield f"text: {decoder.remark}"


def _made(sample: SampleSeen) -> str:
    """Say how an ARC prompt differs from others of its task; empty for texts."""
    origin = sample.words.origin
    change = origin.get("augmentation")
    if not isinstance(change, Mapping) or not {"flip", "rotations", "colors"} <= change.keys():
        return ""
    turned = f"turned {90 * change['rotations']}°" if change["rotations"] else ""
    colours = "".join(map(str, change["colors"]))
    shown = ", ".join(filter(None, ("mirrored" if change["flip"] else "", turned, f"colours {colours}")))
    return f"test {origin['test_index'] + 1}, prediction {origin['prediction']}: {shown}"


def _grids(seen: ShardSeen, sample: SampleSeen, colours: Colours) -> Iterator[str]:
    """Draw the grids of an ARC prompt, shaded by the norms at the last tap that is shown."""
    if not NO_LABELS.keys() <= sample.labels.keys() or not (sample.labels["cells"] > 0).any():
        return
    tap, at_tap = list(seen.taps.items())[-1]
    yield f"grids, as the prompt shows them; shaded by the norm at {tap.site} {tap.layer}, the largest fifth full"
    yield from draw_grids(sample.labels, at_tap.norms[0], colours)
    yield ""


def _top(seen: ShardSeen, decoder: Decoder, most: int) -> Iterator[str]:
    """List the tokens with the largest norms, over all samples and taps that are shown."""
    if not most:
        return
    found = [
        (float(norm), number, token, tap)
        for tap, at_tap in seen.taps.items()
        for number, norms in enumerate(at_tap.norms)
        for token, norm in _largest(norms, most)
    ]
    rows = [("norm", "site", "layer", "sample", "task", "token", "id", "text")]
    for norm, number, token, tap in sorted(found, key=lambda it: -it[0])[:most]:
        sample = seen.samples[number]
        position, token_id, text, _ = _token(seen, sample, decoder, token, number)
        task = _visible(sample.words.task_id)
        rows.append((f"{norm:.5g}", tap.site, str(tap.layer), str(sample.sample_idx), task, position, token_id, text))
    yield ""
    yield table(rows, left=(1, 4, 7))


def _largest(norms: Norms, most: int) -> Iterator[tuple[int, float]]:
    """Yield the places and values of the largest finite norms."""
    finite = np.where(np.isfinite(norms), norms, -1)
    for token in np.argsort(-finite, kind="stable")[:most].tolist():
        if finite[token] >= 0:
            yield token, float(norms[token])


def _norms(seen: ShardSeen) -> Iterator[str]:
    yield table([_NORMS, *(_norm_row(tap, norm_facts(at_tap, seen)) for tap, at_tap in seen.taps.items())])
    flags = np.concatenate(next(iter(seen.taps.values())).flags)
    first, special, prefix = (int(((flags & bit) > 0).sum()) for bit in (FIRST, SPECIAL, PREFIX))
    yield (
        f"{len(flags)} tokens: {first} first of a sample, {special} special, {prefix} of the prefix;"
        f" a sink's norm is over {SINK_FACTOR:g} times the usual norm"
    )


def _norm_row(tap: Tap, facts: NormFacts) -> tuple[str, ...]:
    numbers = ("-" if number is None else f"{number:.5g}" for number in (facts.smallest, facts.median, facts.largest))
    places = ("-" if place is None else str(place) for place in (facts.sample_idx, facts.position))
    return tap.site, str(tap.layer), *numbers, *places, str(facts.sinks), str(facts.nonfinite)


def _tokens(seen: ShardSeen, sample: SampleSeen, decoder: Decoder, max_tokens: int) -> Iterator[str]:
    """List the tokens with their norms at some taps, and say what is left out."""
    count = len(sample.token_ids)
    taps = list(seen.taps)[:: ceil(len(seen.taps) / _MOST_COLUMNS)]
    shown = list(range(count)) if max_tokens == 0 or max_tokens >= count else _ends(count, max_tokens)
    labels = _labels(sample)
    named = ("token", "id", "text", "flags", *labels)
    rows = [(*named, *(f"{tap.site} {tap.layer}" for tap in taps))]
    for place, token in enumerate(shown):
        if place and token != shown[place - 1] + 1:
            rows.append(("⋯", *[""] * (len(rows[0]) - 1)))
        own = (values[token] for values in labels.values())
        rows.append((*_token(seen, sample, decoder, token), *own, *(_norm(seen.taps[tap], token) for tap in taps)))
    yield table(rows, left=tuple(range(2, len(named))))
    yield "norms of each token; * marks a sink"
    if "cell" in labels:
        yield "cell: the pair, its grid, and row, column and colours of the token's cells"
    if len(shown) < count:
        yield f"{count - len(shown)} tokens in the middle are left out; --max_tokens 0 lists all"
    if len(taps) < len(seen.taps):
        yield f"{len(taps)} of {len(seen.taps)} layers and sites have a column; --layer and --site choose others"


def _ends(count: int, most: int) -> list[int]:
    return [*range(most - most // 2), *range(count - most // 2, count)]


def _labels(sample: SampleSeen) -> dict[str, list[str]]:
    """Return the columns of labels that have something to show."""
    labels = [token_labels(sample, token) for token in range(len(sample.token_ids))]
    columns = {"role": [it.role if it else "" for it in labels], "cell": [str(it or "") for it in labels]}
    return {name: values for name, values in columns.items() if set(values) - {"", "text"}}


def _token(
    seen: ShardSeen, sample: SampleSeen, decoder: Decoder, token: int, number: int = 0
) -> tuple[str, str, str, str]:
    token_id = int(sample.token_ids[token])
    text = decoder.token(token_id)
    flags = int(next(iter(seen.taps.values())).flags[number][token])
    return str(sample.positions[token]), str(token_id), "" if text is None else repr(text), " ".join(flag_names(flags))


def _norm(seen: TapSeen, token: int) -> str:
    return f"{seen.norms[0][token]:.5g}{'*' if seen.flags[0][token] & SINK else ' '}"


def _shortened(text: str) -> str:
    """Return the beginning and the end of a text, because prompts of a run begin alike."""
    half = (_TEXT_WIDTH - 3) // 2
    return repr(text if len(text) <= _TEXT_WIDTH else f"{text[:half]} … {text[-half:]}")


def _visible(text: str, keep: str = "") -> str:
    return "".join(char if char.isprintable() or char in keep else repr(char)[1:-1] for char in text)
