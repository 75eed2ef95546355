"""Find rows in another order: swapped prompts, or batches written by columns.

Each row of an array is compared with all tokens of all prompts. If most rows match a token other
than their own, the order of rows is wrong. This costs a product of all rows with all tokens per
candidate, so only some rows are tried first.
"""

from collections.abc import Iterator

import numpy as np

from layertap.compare.candidates import Candidate
from layertap.compare.case import SEARCHED, Alignment, Case, Truth
from layertap.compare.measure import Rows, row_lengths

_NEAR = 0.1
_MOST = 0.9


def reorder(case: Case) -> Iterator[tuple[Alignment, Candidate]]:
    """Yield the candidate at which most rows match other tokens, if there is one."""
    if len(case.truth.prompts) == 1 and len(case.found[0]) < 2:
        return
    whole = [np.nan_to_num(rows, posinf=0, neginf=0) for rows in case.found]
    thin = [rows[:: max(1, -(-sum(map(len, whole)) // SEARCHED))] for rows in whole]
    scores = {candidate: _near_share(np.concatenate(thin), _all_rows(case, candidate)) for candidate in case.candidates}
    candidate = max(scores, key=lambda one: scores[one])
    if scores[candidate] < _MOST:
        return
    rows = _all_rows(case, candidate)
    places = [_nearest(part, rows)[0] for part in whole]
    truth = Truth([{candidate.tap: rows}] * len(case.found), None)
    pairs = [(np.arange(len(at)), at) for at in places]
    yield Alignment(truth, pairs, _in_words(case, places)), Candidate(candidate.tap)


def _all_rows(case: Case, candidate: Candidate) -> Rows:
    lengths = case.truth.lengths()
    return np.concatenate(
        [case.truth.rows(candidate, prompt, np.arange(length)) for prompt, length in enumerate(lengths)]
    )


def _nearest(found: Rows, truth: Rows) -> tuple[np.ndarray, np.ndarray]:
    """Return for each row the nearest row of the truth, and the relative distance."""
    squares = np.sum(truth * truth, axis=1)
    nearest = np.argmin(squares - 2 * (found @ truth.T), axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return nearest, row_lengths(found - truth[nearest]) / row_lengths(truth[nearest])


def _near_share(found: Rows, truth: Rows) -> float:
    return float(np.mean(_nearest(found, truth)[1] <= _NEAR)) if len(found) else 0.0


def _in_words(case: Case, places: list[np.ndarray]) -> str:
    """Describe the first row that is out of place."""
    starts = np.cumsum([0, *case.truth.lengths()])
    for prompt, at in enumerate(places):
        away = np.flatnonzero(at != starts[prompt] + np.arange(len(at)))
        if len(away):
            row = int(away[0])
            owner = int(np.searchsorted(starts, at[row], side="right")) - 1
            token = f"token {int(at[row] - starts[owner])} of sample {owner}"
            return f"its rows are in another order: row {row} of sample {prompt} is what {token} gives"
    return ""
