"""Explain an array: which candidate it is, and what was done to it.

We try explanations from the simplest to those with more freedom: unchanged, shifted by some tokens,
changed by a few constants (transforms.py), channels in another order (permutations.py), rows in
another order. Arrays that none of these explain are compared with other prompts (contexts.py). An
explanation holds if the rest is rounding (rounding.py) in all but a few tokens. Of two that hold,
the one with more freedom must be several times nearer.

The nearest candidate is always found first. So an unexplained array has a row in the table too,
with the distance to the second nearest beside it. If these two distances are similar, the name of
the nearest means little.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from layertap.compare.candidates import Candidate
from layertap.compare.case import Alignment, Case
from layertap.compare.measure import PerToken, Rows, median, token_cosines, token_errors
from layertap.compare.permutations import fit_order
from layertap.compare.reordering import reorder
from layertap.compare.rounding import FLOAT32, Rounding, judge
from layertap.compare.transforms import FITS, SIMPLER, Fit, Fitted

_SHIFTS = (1, -1, 2, -2, 3, -3, 4, -4)
_TAIL = 25.0
"""A token with an error this many times the median is wrong, not rounded."""
_FEW = 0.02
_SOME = 2
"""The share of tokens, or their number, that may be wrong while the others decide what an array is.
Rows of zeros and non-finite rows are not counted, because they are separate faults."""
_SIMILAR = 4  # candidates that changes are tried on, for each way of being like them
_COMPARED = 32  # rows by which they are chosen


@dataclass(frozen=True, eq=False)
class Explanation:
    """A candidate, what was done to it, and the array's distance from the result."""

    candidate: Candidate
    alignment: Alignment
    change: Fitted | None
    errors: Sequence[PerToken]
    """For each prompt, the errors of the rows that the alignment compares."""
    full: Sequence[np.ndarray]
    """For each prompt, which of these rows are finite and not all zeros."""
    cosine: float
    rounding: Rounding

    @property
    def error(self) -> float:
        """The error of the median token."""
        return self.rounding.error

    @property
    def faults(self) -> tuple[str, ...]:
        """What was done, in words; empty if the array is the unchanged candidate."""
        place = Candidate(self.candidate.tap).describe()
        norm = (f"the final norm was applied to {place}",) if self.candidate.normed else ()
        return (*norm, *filter(None, (self.alignment.fault, self.change.fault if self.change else "")))

    @property
    def wrong(self) -> list[np.ndarray]:
        """For each prompt, whether the error of a counted row is more than rounding."""
        bound = _TAIL * max(self.error, FLOAT32)
        return [~(errors <= bound) & full for errors, full in zip(self.errors, self.full, strict=True)]

    @property
    def counted(self) -> int:
        """How many rows count: finite and not all zeros."""
        return sum(int(full.sum()) for full in self.full)

    @property
    def right(self) -> int:
        """How many rows are right."""
        return self.counted - sum(int(one.sum()) for one in self.wrong)

    @property
    def holds(self) -> bool:
        """Whether the rest is only rounding, in all but a few tokens."""
        few = max(_FEW * self.counted, min(_SOME, self.counted / 4))
        return self.rounding.level is not None and self.counted - self.right <= few

    @property
    def exact(self) -> bool:
        """Whether nothing could explain the array better."""
        return self.holds and self.rounding.level in ("float32", "stored")

    @property
    def settled(self) -> bool:
        """Whether other prompts need not be tried.

        Values rounded to half precision have errors of that size. If float32 values have such
        errors, another prompt that hardly matters at this layer would look the same.
        """
        halved = self.rounding.grid in ("bfloat16", "float16")
        return self.exact or (self.holds and halved and not self.faults and self.right == self.counted)


@dataclass(frozen=True, eq=False)
class Diagnosis:
    """The result for one array."""

    case: Case
    nearest: Explanation
    """The nearest unchanged candidate."""
    second: tuple[float, Candidate] | None
    """The second nearest candidate, and its error."""
    explanation: Explanation | None
    """What explains the array; None if nothing does."""

    @property
    def best(self) -> Explanation:
        """The explanation, or else the nearest candidate."""
        return self.explanation or self.nearest


def diagnose(case: Case, like: Explanation | None = None, *, briefly: bool = False) -> Diagnosis:
    """Explain an array with everything except other prompts.

    `like` explained another array of the dump, so the same change is tried first. `briefly` tries
    only the unchanged candidates and `like`.
    """
    plain = case.shifted(0)
    ranking = case.ranking(plain)
    nearest = explain(case, plain, ranking[0][1])
    if nearest.holds:
        held = nearest if nearest.exact else _or_changed(case, nearest)
        return Diagnosis(case, nearest, next(iter(ranking[1:]), None), held)
    best = None if like is None else _like(case, like, nearest)
    brief = briefly or nearest.counted == 0
    for tries in () if brief else (_shifted, _changed, _reordered):
        if best is not None and best.exact:
            break
        for found in tries(case):
            best = better(best, found, nearest)
    return _with_second(Diagnosis(case, nearest, next(iter(ranking[1:]), None), best))


def explain(case: Case, alignment: Alignment, candidate: Candidate, change: Fitted | None = None) -> Explanation:
    """Measure the array's distance from the result of this change, over all rows."""
    pairs = [
        (found, truth if change is None else change.predict(truth).astype(np.float32))
        for found, truth in case.rows(alignment, candidate)
    ]
    errors = [token_errors(found, truth) for found, truth in pairs]
    cosine = median([token_cosines(found, truth) for found, truth in pairs])
    full = [np.isfinite(found).all(axis=1) & (found != 0).any(axis=1) for found, _ in pairs]
    kept = [(found[at], truth[at]) for (found, truth), at in zip(pairs, full, strict=True)]
    freedom = "none" if change is None else change.freedom
    right = [y for _, y in kept]
    stretch = 1.0 if change is None else change.stretch(np.concatenate(right))
    rounding = judge([x for x, _ in kept], right, case.grid, candidate.depth, freedom, stretch)
    return Explanation(candidate, alignment, change, errors, full, cosine, rounding)


def better(
    best: Explanation | None, other: Explanation, nearest: Explanation, factor: float = SIMPLER
) -> Explanation | None:
    """Return `other` if it holds and is nearer than `best` by that factor; else `best`.

    The nearest candidate does not hold if many tokens are wrong. An explanation that covers those
    too must keep the right tokens as near as they were.
    """
    if not other.holds or other.error > SIMPLER * max(nearest.error, FLOAT32):
        return best
    return other if best is None or factor * other.error < best.error else best


def _with_second(diagnosis: Diagnosis) -> Diagnosis:
    """For an explanation that holds, make the nearest other candidate the second."""
    best = diagnosis.explanation
    if best is None or best.change is not None or best.alignment.truth is not diagnosis.case.truth:
        return diagnosis
    ranking = diagnosis.case.ranking(best.alignment)
    others = [entry for entry in ranking if entry[1] != best.candidate]
    return replace(diagnosis, second=next(iter(others), None))


def _shifted(case: Case) -> Iterator[Explanation]:
    """Yield the nearest candidate with rows shifted against tokens."""
    tried = [(ranking[0], alignment) for alignment in _shifts(case) for ranking in [case.ranking(alignment)]]
    for (_, candidate), alignment in sorted(tried, key=lambda entry: entry[0][0])[:1]:
        yield explain(case, alignment, candidate)


def _shifts(case: Case) -> list[Alignment]:
    return [alignment for by in _SHIFTS if (alignment := case.shifted(by)).count > 0]


def _or_changed(case: Case, nearest: Explanation) -> Explanation:
    """Return the candidate that holds, or the same with a change if that is much nearer.

    Small changes look like rounding: in trained models the mean over channels is a hundredth.
    """
    best = nearest
    for fit in (*FITS, fit_order):
        for changed in _fitted(case, nearest.alignment, [nearest.candidate], fit):
            best = better(best, changed, nearest) or best
    return best


def _like(case: Case, like: Explanation, nearest: Explanation) -> Explanation | None:
    """Apply the change of another array to this one."""
    best = None
    alignment = case.shifted(like.alignment.shift or 0)
    for candidate in similar(case, alignment) if alignment.count else ():
        fit = None if like.change is None else like.change.fit
        change = None if fit is None else fit(*case.searched(alignment, candidate))
        if fit is None or change is not None:
            best = better(best, explain(case, alignment, candidate, change), nearest)
    return best


def _changed(case: Case) -> Iterator[Explanation]:
    """Yield each change with its best constants and candidate."""
    alignments = [alignment for alignment in map(case.shifted, (0, 1, -1)) if alignment.count]
    likely = [(alignment, similar(case, alignment)) for alignment in alignments]
    for fit in (*FITS, fit_order):
        for alignment, candidates in likely:
            found = [one for one in _fitted(case, alignment, candidates, fit) if one.holds]
            yield from found
            if found:
                break


def _fitted(case: Case, alignment: Alignment, candidates: Iterable[Candidate], fit: Fit) -> Iterator[Explanation]:
    tried: list[tuple[float, Candidate, Fitted]] = []
    for candidate in candidates:
        found, truth = case.searched(alignment, candidate)
        fitted = fit(found, truth)
        if fitted is not None:
            change = replace(fitted, fit=fit)
            tried.append((median(token_errors(found, change.predict(truth))), candidate, change))
    for _, candidate, change in sorted(tried, key=lambda entry: entry[0])[:1]:
        yield explain(case, alignment, candidate, change)


def similar(case: Case, alignment: Alignment) -> list[Candidate]:
    """Return the claimed candidates, and those similar to the array.

    The similarity does not change under scaling, centring or another order of channels.
    """
    claimed = [one for one in case.candidates if case.claim is not None and one in case.claim.candidates]
    scores = [_likenesses(*case.searched(alignment, one)) for one in case.candidates]
    best = [np.argsort([-score[way] for score in scores])[:_SIMILAR] for way in range(3)]
    return list(dict.fromkeys([*claimed, *(case.candidates[at] for way in best for at in way.tolist())]))


def _likenesses(found: Rows, truth: Rows) -> tuple[float, float, float]:
    """Return the cosines of rows, of rows minus the mean over tokens, and of sorted rows."""
    x, y = found[:_COMPARED], truth[:_COMPARED]
    if not len(x):
        return 0.0, 0.0, 0.0
    ways = ((x, y), (x - np.median(x, axis=0), y - np.median(y, axis=0)), (np.sort(x, axis=1), np.sort(y, axis=1)))
    one, two, three = (_number(median(token_cosines(*way))) for way in ways)
    return one, two, three


def _number(value: float) -> float:
    return value if np.isfinite(value) else 0.0


def _reordered(case: Case) -> Iterator[Explanation]:
    """Yield explanations by rows of other tokens or prompts, in any order."""
    yield from (explain(case, alignment, candidate) for alignment, candidate in reorder(case))
