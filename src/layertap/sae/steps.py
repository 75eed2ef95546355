"""A run's tokens in steps, for a walk over all its features.

Shards come one after the other. Of each come its labels, then its activations, a step at a time. A
step ends where its shard ends, so its content depends on its shard alone, not on the shards before
it. Each shard has at least one step, which has no tokens if all are excluded.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from layertap.errors import UsageError
from layertap.reader.choice import choose_tokens
from layertap.reader.config import BatchConfig
from layertap.reader.pieces import ShardTokens
from layertap.reader.shards import Shards
from layertap.sae.answers import Answers, answer, label_columns, no_answers
from layertap.sae.tally import Piece, Place
from layertap.shards.shard import Shard


@dataclass(frozen=True, eq=False)
class Step:
    """Some tokens of a shard to count."""

    activations: np.ndarray
    """[tokens, width] in the storage dtype."""
    answers: Answers
    pieces: tuple[Piece, ...]
    rows: np.ndarray
    """The row of each token among its sample's activations."""
    samples: int
    """How many samples it completes: all of its shard, or none."""
    place: Place
    """Where the next step is."""
    done: int
    """How many tokens of the run are done after it, excluded ones included."""


def take_steps(shards: Shards, config: BatchConfig, start: Place, most: int) -> Iterator[Step]:
    """Yield the tokens of the one tap that `config` names and does not exclude, at most `most` in a
    step.
    """
    done = sum(shards.tokens[: start.shards])
    for number in range(start.shards, len(shards)):
        first = start.steps if number == start.shards else 0
        yield from _of_shard(shards, number, config, Place(number, first), most, done)
        done += shards.tokens[number]


def _of_shard(shards: Shards, number: int, config: BatchConfig, start: Place, most: int, done: int) -> Iterator[Step]:
    content, tokens = shards.content(number), shards.tokens[number]
    offsets, (tap,) = content.offsets(), config.taps
    chosen = np.flatnonzero(choose_tokens(ShardTokens(content, 0, tokens), config, tokens))
    answers = _answers(content, offsets)
    last = max(len(chosen) - 1, 0) // most
    for step in range(start.steps, last + 1):
        rows = chosen[step * most : (step + 1) * most]
        begin, end = (int(rows[0]), int(rows[-1]) + 1) if len(rows) else (0, 0)
        samples = np.searchsorted(offsets, rows, side="right") - 1
        yield Step(
            activations=content.activations(tap, begin, end)[rows - begin],
            answers=answers[:, rows],
            pieces=_pieces(samples, shards.first_samples[number]),
            rows=rows - offsets[samples],
            samples=shards[number][1].samples if step == last else 0,
            place=Place(number + 1, 0) if step == last else Place(number, step + 1),
            done=done + (tokens if step == last else end),
        )


def _pieces(samples: np.ndarray, first: int) -> tuple[Piece, ...]:
    """Return the runs of rows of one sample each, from the sample of each row."""
    bounds = [*np.flatnonzero(np.diff(samples, prepend=-1)).tolist(), len(samples)]
    return tuple(Piece(first + int(samples[begin]), begin, end) for begin, end in pairwise(bounds))


def _answers(content: Shard, offsets: np.ndarray) -> Answers:
    """Return the answers of all tokens of a shard; none if the run stored no labels."""
    total = int(offsets[-1])
    try:
        columns = {name: content.column(name, 0, total) for name in label_columns()}
    except UsageError:
        return no_answers(total)
    parts = [
        answer({name: values[begin:end] for name, values in columns.items()})
        for begin, end in pairwise(offsets.tolist())
    ]
    return np.concatenate(parts, axis=1) if parts else no_answers(0)
