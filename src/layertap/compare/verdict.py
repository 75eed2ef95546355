"""Describe a diagnosis in words, and decide whether it is a fault.

Rounding of any dtype is not a fault; the verdict reports it with its size. It is a fault if the
array is not what its name says, if something was done to it, if some tokens are wrong, or if
nothing explains it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from layertap.compare.candidates import Candidate, ModelFacts
from layertap.compare.case import Case
from layertap.compare.claims import Claim
from layertap.compare.diagnosis import Diagnosis, Explanation, explain
from layertap.compare.restarts import right_rows
from layertap.compare.transforms import is_constant

_ALIKE = 1.5
"""Two candidates cannot be distinguished if their errors differ by at most this factor."""
_FAR = 0.5


@dataclass(frozen=True)
class Verdict:
    """What an array is, in words."""

    fault: bool
    words: str


def judge_diagnosis(diagnosis: Diagnosis) -> Verdict:
    """Judge an array that was compared."""
    best = _as_claimed(diagnosis)
    case, nearest = diagnosis.case, diagnosis.nearest
    if best is None and 2 * nearest.right > nearest.counted and nearest.rounding.level is not None:
        best = nearest
    if best is None:
        return Verdict(True, f"nothing explains it: {'; '.join(_clues(diagnosis))}")
    other = list(_another(best.candidate, case.claim))
    wrong = [*other, *best.faults, *_bad_rows(case, best)]
    if not wrong:
        return Verdict(False, best.rounding.describe())
    told = "" if other or best.candidate.normed else f"this is {best.candidate.describe()}; "
    return Verdict(True, f"{told}{'; '.join(wrong)}; {best.rounding.describe()}")


def judge_width(width: int, facts: ModelFacts) -> Verdict:
    """Judge an array whose width no site has."""
    if width == facts.vocab_size:
        return Verdict(True, "as wide as the vocabulary: logits, which Layertap does not compute")
    if facts.sites_of(width):
        return Verdict(True, f"none of the sites that it may be of is {width} wide: give other --sites")
    widths = ", ".join(map(str, dict.fromkeys(facts.widths.values())))
    return Verdict(
        True, f"a token has {width} numbers, and no site of {facts.name} has (they have {widths}): another model"
    )


def _as_claimed(diagnosis: Diagnosis) -> Explanation | None:
    """Return the explanation by the array's claim if it is as good as the best one."""
    best, claim = diagnosis.explanation, diagnosis.case.claim
    if best is None or claim is None or best.candidate in claim.candidates:
        return best
    tried = [
        explain(diagnosis.case, best.alignment, candidate, best.change)
        for candidate in claim.candidates
        if candidate in diagnosis.case.candidates
    ]
    alike = [one for one in tried if one.holds and one.error <= _ALIKE * best.error]
    return min(alike, key=lambda one: one.error, default=best)


def _another(candidate: Candidate, claim: Claim | None) -> Iterator[str]:
    plain = Candidate(candidate.tap)
    if claim is None or not claim.candidates.isdisjoint({candidate, plain}):
        return
    layer = candidate.tap.layer
    above = any(one.tap.layer == layer + 1 for one in claim.candidates) and candidate.tap.site == "residual"
    counted = f" (`hidden_states[{layer + 1}]` of transformers, which counts the embeddings)" if above else ""
    yield f"this is {plain.describe()}{counted}, not {claim.words}"


def _bad_rows(case: Case, best: Explanation) -> Iterator[str]:
    """Yield sentences about rows that differ from the others."""
    for words, bad in (
        ("NaN or infinite", [~np.isfinite(rows).all(axis=1) for rows in case.found]),
        ("all zeros", [(rows == 0).all(axis=1) for rows in case.found]),
    ):
        if (count := sum(int(one.sum()) for one in bad)) > 0:
            yield f"{count} of {sum(map(len, bad))} rows are {words}, the first at {_first(case, bad)}"
    if (count := best.counted - best.right) > 0:
        yield f"{count} of {best.counted} tokens are wrong, the first at {_first(case, best.wrong, best)}"
    missing = [len(rows) - len(at) for rows, (at, _) in zip(case.found, best.alignment.pairs, strict=True)]
    if not best.alignment.fault and any(missing):
        yield f"it has {missing[0]} rows more than there are token ids"
    lengths = best.alignment.truth.lengths()
    short = [tokens - len(rows) for rows, tokens in zip(case.found, lengths, strict=True)]
    if not best.alignment.fault and any(one > 0 for one in short):
        yield f"it has {max(short)} rows fewer than there are token ids: the last ones are missing"


def _first(case: Case, bad: Sequence[np.ndarray], best: Explanation | None = None) -> str:
    prompt = next(number for number, one in enumerate(bad) if one.any())
    at = int(np.flatnonzero(bad[prompt])[0])
    return case.place(prompt, at if best is None else int(best.alignment.pairs[prompt][0][at]))


def _clues(diagnosis: Diagnosis) -> Iterator[str]:
    """Describe an array that nothing explains."""
    case, nearest = diagnosis.case, diagnosis.nearest
    candidate, counts = right_rows(case)
    bad = sum(int((~np.isfinite(rows).all(axis=1)).sum()) for rows in case.found)
    if bad:
        yield f"{bad} of {sum(map(len, case.found))} rows are NaN or infinite"
    zeros = sum(int((rows == 0).all(axis=1).sum()) for rows in case.found)
    if zeros:
        yield f"{zeros} of {sum(map(len, case.found))} rows are all zeros"
    if nearest.counted == 0:
        return
    if is_constant(np.concatenate([rows[np.isfinite(rows).all(axis=1)] for rows in case.found])):
        yield "all its rows are the same"
    if any(counts):
        yield _how_far_right(case, candidate, counts)
    elif nearest.error > _FAR and nearest.cosine < 1 - _FAR:
        yield "no tap is near it: another model, other weights or tokens, or a value that is not at one of our sites"
    told = (
        f"the nearest is {nearest.candidate.describe()}, {nearest.error:.2g} off with a cosine of {nearest.cosine:.3f}"
    )
    yield told + (
        f", the next {diagnosis.second[1].describe()}, {diagnosis.second[0]:.2g} off" if diagnosis.second else ""
    )


def _how_far_right(case: Case, candidate: Candidate, counts: Sequence[int]) -> str:
    place = candidate.describe()
    wholly = sum(count >= len(rows) for count, rows in zip(counts, case.found, strict=True))
    if all(count == 1 for count in counts):
        return (
            f"the first token of each sample is {place}, and no other: what tokens take from those before them is"
            " wrong, so look at the positions, the rotary base or scaling, and the attention mask"
        )
    if wholly:
        return f"{wholly} of {len(counts)} samples are {place}, the others are not"
    first = next(number for number, count in enumerate(counts) if count)
    return f"the first {counts[first]} tokens of sample {first} are {place}, and then no more"
