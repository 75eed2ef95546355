"""Other prompts that an array may come from, because a tool may not record what it ran.

Each context is some token ids to run, and the place of the dump's rows in them. Contexts are run
one after another, at the few nearest candidates, and only while an array is not explained
otherwise.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from layertap.compare.candidates import ModelFacts
from layertap.compare.case import Alignment, Case, Truth
from layertap.compare.dump import Prompt

MOST_TOKENS = 4096
"""The most tokens of a run that is not a prompt of the dump."""
LONGEST_OPENING = 64
"""How many tokens may have come before a prompt."""
_MOST_OPENERS = 32


@dataclass(frozen=True)
class Piece:
    """Rows `first` to `end` of a prompt are the rows of a run from its token `token`."""

    run: int
    token: int
    first: int = 0
    end: int | None = None


Pieces = Sequence[Sequence[Piece]]
"""The pieces of each prompt of the dump; none if it is not compared."""


@dataclass(frozen=True, eq=False)
class Context:
    """What may have been run instead."""

    runs: Sequence[np.ndarray]
    """Token ids."""
    readings: Sequence[tuple[str, Pieces]]
    """A description of the fault, and where the rows are."""

    def alignments(self, case: Case, truth: Truth) -> Iterator[Alignment]:
        """Yield alignments of an array's rows with the activations of these runs."""
        yield from (self._align(case, truth, fault, pieces) for fault, pieces in self.readings)

    def _align(self, case: Case, truth: Truth, fault: str, of_prompts: Pieces) -> Alignment:
        lengths = truth.lengths()
        pairs, prompts = [], []
        for found, pieces in zip(case.found, of_prompts, strict=True):
            rows = [_rows(piece, len(found), lengths[piece.run]) for piece in pieces]
            runs = [truth.prompts[piece.run] for piece in pieces]
            offsets = np.cumsum([0, *(lengths[piece.run] for piece in pieces)])
            places = [at - piece.first + piece.token for at, piece in zip(rows, pieces, strict=True)]
            pairs.append(_joined(rows, [at + offset for at, offset in zip(places, offsets, strict=False)]))
            prompts.append({tap: np.concatenate([run[tap] for run in runs]) for tap in runs[0]} if runs else {})
        return Alignment(Truth(prompts, truth.final_norm), pairs, fault)


def _rows(piece: Piece, rows: int, tokens: int) -> np.ndarray:
    end = min(rows if piece.end is None else min(piece.end, rows), piece.first + tokens - piece.token)
    return np.arange(piece.first, max(end, piece.first))


def _joined(rows: list[np.ndarray], places: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    empty = np.zeros(0, np.int64)
    return np.concatenate([empty, *rows]), np.concatenate([empty, *places])


def contexts(prompts: Sequence[Prompt], tokens: int, facts: ModelFacts) -> Iterator[Context]:
    """Yield what may have been run instead of these prompts, for the compared tokens."""
    most = min(MOST_TOKENS, facts.context or MOST_TOKENS)
    yield from _without_first([prompt.token_ids[:tokens] for prompt in prompts])
    yield from _padded(prompts, tokens, most)
    yield from _leaked(prompts, tokens, most)


def openers(facts: ModelFacts) -> list[tuple[int, ...]]:
    """Return possible openings of each prompt: of the tokenizer, its chat template, or a special
    token.
    """
    special = [(token,) for token in sorted(facts.special_ids)[:_MOST_OPENERS]]
    usual = [facts.opening_ids, facts.chat_opening, facts.opening_ids + facts.chat_opening]
    return list(dict.fromkeys([*(one for one in usual if 0 < len(one) <= LONGEST_OPENING), *special]))


def opened(ids: Sequence[np.ndarray], opener: tuple[int, ...], text: str) -> Context:
    """Return the context of prompts that follow tokens missing from the dump."""
    runs = [np.concatenate([np.array(opener, np.int32), prompt]) for prompt in ids]
    told = f"the model had {text!r} before the tokens, which the token ids lack"
    return Context(
        runs,
        [
            (told, [[Piece(run, len(opener))] for run in range(len(ids))]),
            (f"{told}; row 0 is that token's", [[Piece(run, 0)] for run in range(len(ids))]),
        ],
    )


def _without_first(ids: list[np.ndarray]) -> Iterator[Context]:
    """Yield the context without the first token that the dump lists."""
    if min(map(len, ids)) < 2:
        return
    told = "the model did not have the first of the token ids"
    yield Context(
        [prompt[1:] for prompt in ids],
        [
            (told, [[Piece(run, 0, first=1)] for run in range(len(ids))]),
            (f"{told}, and there is no row for it", [[Piece(run, 0)] for run in range(len(ids))]),
        ],
    )


def _padded(prompts: Sequence[Prompt], tokens: int, most: int) -> Iterator[Context]:
    """Yield the context in which padding on the left was attended to."""
    if not any(len(prompt.before) for prompt in prompts):
        return
    runs = [np.concatenate([prompt.before, prompt.token_ids[:tokens]])[:most] for prompt in prompts]
    pieces = [[Piece(run, len(prompt.before))] for run, prompt in enumerate(prompts)]
    yield Context(runs, [("the padding on the left was attended to: the model had no attention mask", pieces)])


def _leaked(prompts: Sequence[Prompt], tokens: int, most: int) -> Iterator[Context]:
    """Yield the context of prompts in one row that attended to the prompts before."""
    whole, pieces, before = [], [], 0
    for prompt in prompts:
        fits = before + min(tokens, len(prompt)) <= most
        pieces.append([Piece(0, before)] if fits else [])
        if fits:
            whole.append(prompt.token_ids)
        before += len(prompt)
    if len(whole) < 2:
        return
    told = "its samples attended to those before them, as in a packed row without a mask by sample"
    yield Context([np.concatenate(whole)[:most]], [(told, pieces)])
