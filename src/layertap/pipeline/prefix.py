"""How the prompts of a run begin: which tokens are flagged `prefix`, and computed once.

This must follow from the settings alone, or two machines or two starts of one run would flag and
compute different tokens. So it is found before the dataset is opened, from prompts of made-up
records that differ in all that records can differ in: what they share comes from the template.
Puzzles have one prefix. Conversations have two: the start of all of them, and the start of those
without a system message, which is longer if the chat template adds a default system prompt. Plain
text and token ids share at most the tokenizer's opening tokens.

A sample has the longest prefix of its kind that it begins with. A sample with none, or a short one,
is computed whole. A system prompt that all conversations of a dataset contain is no prefix: only
the dataset shows it.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

import numpy as np
from jaxtyping import Int32

from layertap.core.columns import PREFIX, ROLES
from layertap.core.records import Conversation, Grid, Pair, Task
from layertap.core.sample import Sample
from layertap.errors import PromptError
from layertap.prompts import PromptMaker

Kind = Literal["puzzle", "conversation", "text"]
Ids = Int32[np.ndarray, " _tokens"]
_TEXT = ROLES.index("text")
_BEGINNINGS = ("Why", "5", "a", "(", "Ünder", "日本")
FEWEST = 16
"""Tokens that are worth two more programs; a shorter prefix is computed with each sample."""


@dataclass(frozen=True, eq=False)
class Prefixes:
    """The prefixes of a run; without arguments there are none."""

    by_kind: Mapping[Kind, tuple[Ids, ...]] = field(default_factory=dict)
    """The prefixes of each kind of sample, the longest first."""
    share: bool = False
    """Whether they are computed once."""

    @cached_property
    def shared(self) -> tuple[Ids, ...]:
        """The prefixes that are computed once; the first is number 1."""
        enough = (ids for kind in self.by_kind.values() for ids in kind if self.share and len(ids) >= FEWEST)
        return tuple(np.array(ids, np.int32) for ids in dict.fromkeys(tuple(ids.tolist()) for ids in enough))

    def of(self, sample: Sample) -> Ids:
        """The prefix of a sample; empty if it begins with none."""
        token_ids = sample.token_ids
        for ids in self.by_kind.get(_kind(sample), ()):
            if np.array_equal(token_ids[: len(ids)], ids):
                return ids
        return token_ids[:0]

    def marked(self, sample: Sample) -> Sample:
        """The sample with its prefix flagged."""
        flags = sample.columns["flags"].copy()
        flags[: len(self.of(sample))] |= PREFIX
        return replace(sample, columns={**sample.columns, "flags": flags})

    def number(self, sample: Sample) -> int:
        """The prefix of `shared` that a sample uses, counted from 1; 0: all of it is computed."""
        own = self.of(sample)
        if len(own) == sample.tokens:
            return 0
        return next((n for n, ids in enumerate(self.shared, 1) if np.array_equal(ids, own)), 0)

    def length(self, number: int) -> int:
        """How many tokens the prefix of this number has."""
        return len(self.shared[number - 1]) if number else 0


def find_prefixes(maker: PromptMaker, *, share: bool) -> Prefixes:
    """The prefixes of the prompts of `maker`."""
    plain = replace(maker, predictions_per_task=1, seed=0, split=None)
    conversations = list(_conversations())
    bare = [record for record in conversations if record.messages[0]["role"] != "system"]
    found: dict[Kind, list[Ids]] = {
        "puzzle": [_prefix(plain, list(_puzzles()))],
        "conversation": [_prefix(plain, bare), _prefix(plain, conversations)],
        "text": [np.array(maker.tokenizer.opening_ids, np.int32)],
    }
    return Prefixes({kind: tuple(sorted(ids, key=len, reverse=True)) for kind, ids in found.items()}, share)


def _kind(sample: Sample) -> Kind:
    if sample.origin.get("augmentation") is not None:
        return "puzzle"
    return "text" if (sample.columns["role"] == _TEXT).all() else "conversation"


def _prefix(maker: PromptMaker, records: Sequence[Task | Conversation]) -> Ids:
    """The shared start of these records' prompts; empty if a chat template refuses them."""
    sound = [record for record in records if maker.refusal(record) is None]
    try:
        made = [sample.token_ids for sample in maker.make([(number, record) for number, record in enumerate(sound)])]
    except PromptError:  # no prompt of this kind can be made; the run reports it if it has one
        made = []
    return made[0][: _common(made)] if made else np.empty(0, np.int32)


def _common(sequences: Sequence[Ids]) -> int:
    """How many tokens at the start are the same in all."""
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
