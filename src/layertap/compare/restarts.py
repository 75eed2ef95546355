"""Detect prompts that were run in parts: texts cut into contexts, or several texts in one row.

Such an array is right up to some token. From there it equals the activations of the remaining
tokens run alone. We find the place in the data instead of guessing: where rows begin to be wrong,
we run the rest, and repeat until no row is wrong, or until a rest does not begin right.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from layertap.compare.candidates import Candidate
from layertap.compare.case import Case
from layertap.compare.contexts import Context, Piece
from layertap.compare.dump import Prompt
from layertap.compare.measure import token_errors
from layertap.compare.rounding import FLOAT32, usual_bound
from layertap.core.taps import Tap

Read = Callable[[Sequence[np.ndarray], Sequence[Tap]], list[dict[Tap, np.ndarray]]]

_ROUNDS = 8
_TAIL = 25.0


@dataclass(eq=False)
class _Parts:
    """The known beginnings of the parts of one prompt."""

    ids: np.ndarray
    starts: list[int] = field(default_factory=lambda: [0])
    done: bool = False


def right_rows(case: Case) -> tuple[Candidate, list[int]]:
    """Return the candidate with the most right rows from the first on, and their number per
    prompt.
    """
    plain = case.shifted(0)
    counts = {}
    for candidate in case.candidates:
        errors = [token_errors(found, truth) for found, truth in case.rows(plain, candidate)]
        counts[candidate] = [_first_wrong(one, bound(case, candidate)) for one in errors]
    best = max(counts, key=lambda one: sum(counts[one]))
    return best, counts[best]


def bound(case: Case, candidate: Candidate) -> float:
    """Return the largest error that a single token may have, given the grid of the numbers."""
    return usual_bound("bfloat16", candidate.depth) if case.grid == "bfloat16" else _TAIL * FLOAT32


def find_restarts(case: Case, prompts: Sequence[Prompt], read: Read) -> Context | None:
    """Find the parts in which the prompts were run; None if they were not run in parts."""
    candidate, counts = right_rows(case)
    limit = bound(case, candidate)
    parts = [
        _Parts(prompt.token_ids[: len(found)], done=count >= len(found))
        for prompt, found, count in zip(prompts, case.found, counts, strict=True)
    ]
    nexts = list(counts)
    for _ in range(_ROUNDS):
        open_ = [number for number, part in enumerate(parts) if not part.done]
        if not open_ or any(nexts[number] == parts[number].starts[-1] for number in open_):
            break
        for number in open_:
            parts[number].starts.append(nexts[number])
        rests = read([parts[number].ids[nexts[number] :] for number in open_], [candidate.tap])
        for number, rest in zip(open_, rests, strict=True):
            start = nexts[number]
            truth = rest[candidate.tap] if not candidate.normed else case.truth.normed(rest[candidate.tap])
            right = _first_wrong(token_errors(case.found[number][start : start + len(truth)], truth), limit)
            nexts[number], parts[number].done = start + right, start + right >= len(parts[number].ids)
    return _context(parts) if all(part.done for part in parts) and any(len(part.starts) > 1 for part in parts) else None


def _first_wrong(errors: np.ndarray, limit: float) -> int:
    wrong = np.flatnonzero(~(errors <= limit))
    return int(wrong[0]) if len(wrong) else len(errors)


def _context(parts: Sequence[_Parts]) -> Context:
    runs, pieces = list[np.ndarray](), list[list[Piece]]()
    for part in parts:
        ends = [*part.starts[1:], len(part.ids)]
        pieces.append(
            [
                Piece(len(runs) + at, 0, begin, end)
                for at, (begin, end) in enumerate(zip(part.starts, ends, strict=True))
            ]
        )
        runs += [part.ids[begin:end] for begin, end in zip(part.starts, ends, strict=True)]
    number = next(at for at, part in enumerate(parts) if len(part.starts) > 1)
    at = ", ".join(map(str, parts[number].starts[1:]))
    told = f"the text was run in parts that do not see each other: sample {number} starts again at token {at}"
    return Context(runs, [(told, pieces)])
