"""Which of the tokens that were computed are stored: `--keep_tokens`.

What every prompt of a run begins with (`no_prefix`) has to follow from the settings alone, or two
machines of one run, or two starts of it, would keep other tokens. So it is found from prompts of
made-up records, which differ in all that records can differ in, before the dataset is opened: what
these have in common is the template's. It is one for puzzles and one for conversations; plain text
and token ids begin alike with the tokenizer's opening tokens at most.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from jaxtyping import Bool, Int32

from layertap.core.columns import ROLES, select
from layertap.core.records import Conversation, Grid, Pair, Task
from layertap.core.sample import Sample
from layertap.core.selection import ALL, NO_PREFIX
from layertap.errors import PromptError
from layertap.prompts import PromptMaker

_Kind = Literal["puzzle", "conversation", "text"]
_TEXT = ROLES.index("text")
_BEGINNINGS = ("Why", "5", "a", "(", "Ünder", "日本")


@dataclass(frozen=True)
class KeptTokens:
    """The choice of a run; without arguments it keeps all."""

    names: tuple[str, ...] = (ALL,)
    """As `core.selection` has them."""
    prefixes: Mapping[_Kind, Int32[np.ndarray, " _tokens"]] = field(default_factory=dict)
    """What every prompt of a kind begins with, where that is not kept."""

    def rows(self, sample: Sample) -> Bool[np.ndarray, " tokens"] | None:
        """Which tokens of a sample that is whole are kept; None: all."""
        if ALL in self.names:
            return None
        kept = select(sample.columns, [name for name in self.names if name != NO_PREFIX])
        if NO_PREFIX in self.names:
            kept[_common([sample.token_ids, self.prefixes[_kind(sample)]]) :] = True
        return kept

    def of(self, sample: Sample) -> Sample:
        """What is kept of a sample that is whole; maybe no token."""
        rows = self.rows(sample)
        return sample if rows is None else sample.only(rows)


def kept_tokens(names: tuple[str, ...], maker: PromptMaker) -> KeptTokens:
    """What these names keep of the prompts of `maker`."""
    if NO_PREFIX not in names:
        return KeptTokens(names)
    plain = replace(maker, predictions_per_task=1, seed=0, split=None)
    prefixes: dict[_Kind, Int32[np.ndarray, " _tokens"]] = {
        "puzzle": _prefix(plain, list(_puzzles())),
        "conversation": _prefix(plain, list(_conversations())),
        "text": np.array(maker.tokenizer.opening_ids, np.int32),
    }
    return KeptTokens(names, prefixes)


def _kind(sample: Sample) -> _Kind:
    if sample.origin.get("augmentation") is not None:
        return "puzzle"
    return "text" if (sample.columns["role"] == _TEXT).all() else "conversation"


def _prefix(maker: PromptMaker, records: Sequence[Task | Conversation]) -> Int32[np.ndarray, " _tokens"]:
    """What the prompts of these records begin with; those that a chat template refuses are none."""
    sound = [record for record in records if maker.refusal(record) is None]
    try:
        made = [sample.token_ids for sample in maker.make([(number, record) for number, record in enumerate(sound)])]
    except PromptError:  # no prompt of this kind can be made, as the run will say where it has one
        made = []
    return made[0][: _common(made)] if made else np.empty(0, np.int32)


def _common(sequences: Sequence[Int32[np.ndarray, " _tokens"]]) -> int:
    """How many tokens at their beginning are the same in all."""
    shortest = min(map(len, sequences))
    same = np.logical_and.reduce([tokens[:shortest] == sequences[0][:shortest] for tokens in sequences])
    return shortest if same.all() else int(np.argmin(same))


def _puzzles() -> Iterator[Task]:
    """Puzzles of every size, with every colour in the first cell, of one to three train pairs."""
    for number in range(40):
        shapes = [(1 + (number * step) % 30, 1 + (number * step + step) % 30) for step in (1, 7, 11, 13)]
        first, *others = (_grid(*shape, first=number + place) for place, shape in enumerate(shapes))
        train = tuple(Pair(first, grid) for grid in others[: 1 + number % 3])
        yield Task(f"made up {number}", train, (Pair(others[-1], first),))


def _grid(height: int, width: int, first: int) -> Grid:
    return tuple(tuple((first + row + col) % 10 for col in range(width)) for row in range(height))


def _conversations() -> Iterator[Conversation]:
    """Conversations with and without a system message, of one question and of two."""
    for number, words in enumerate(_BEGINNINGS):
        asked = {"role": "user", "content": f"{words} {number}"}
        answered = {"role": "assistant", "content": f"{words[::-1]} {number}"}
        for place, system in enumerate([[], [{"role": "system", "content": f"{words}: {number}"}]]):
            yield Conversation(f"made up {number} {place}", (*system, asked))
            yield Conversation(f"made up {number} {place} again", (*system, asked, answered, asked))
