"""Find channels in another order: heads permuted, halves interleaved, two axes swapped.

To see whether two rows have the same numbers in another order, we sort both; that is cheap and
needs no guess. Only then we look for the order itself, channel by channel: a channel of the array
matches the channel of the truth that has the same values at some tens of tokens.
"""

import numpy as np
from jaxtyping import Int

from layertap.compare.measure import Rows, median, row_lengths, token_errors
from layertap.compare.transforms import Fitted

_SAME = 0.05  # a relative error of sorted rows
_BLOCK = 512  # channels that are matched at a time
_BIJECTIVE = 0.98


def fit_order(found: Rows, truth: Rows) -> Fitted | None:
    """Fit another order of channels, the same for all tokens."""
    if len(found) < 2 or median(token_errors(np.sort(found, axis=1), np.sort(truth, axis=1))) > _SAME:
        return None
    order = _find_order(found, truth)
    width = len(order)
    if len(set(order.tolist())) < _BIJECTIVE * width or np.array_equal(order, np.arange(width)):
        return None
    return Fitted(f"its channels are in another order: {_in_words(order)}", lambda rows: rows[:, order])


def _find_order(found: Rows, truth: Rows) -> Int[np.ndarray, " width"]:
    """Return the nearest channel of the truth for each channel of the array."""
    lengths = row_lengths(truth)[:, None]
    scale = 1 / np.where(lengths == 0, np.float32(1), lengths)
    x, y = found * scale, truth * scale
    squares = np.sum(y * y, axis=0)
    order = [np.argmin(squares - 2 * x[:, at : at + _BLOCK].T @ y, axis=1) for at in range(0, x.shape[1], _BLOCK)]
    return np.concatenate(order)


def _in_words(order: Int[np.ndarray, " width"]) -> str:
    width = len(order)
    if np.array_equal(order, np.arange(width)[::-1]):
        return "from last to first"
    for rows in (size for size in range(2, width) if width % size == 0):
        if np.array_equal(order, np.arange(width).reshape(rows, -1).T.ravel()):
            return f"as if [{rows}, {width // rows}] had been written as [{width // rows}, {rows}]"
    block = next(size for size in range(width, 0, -1) if width % size == 0 and _in_blocks(order, size))
    if block > 1:
        return f"blocks of {block} have changed places, as heads would"
    return f"no simple one; the first channels are {', '.join(map(str, order[:6].tolist()))} of ours"


def _in_blocks(order: Int[np.ndarray, " width"], size: int) -> bool:
    blocks = order.reshape(-1, size)
    return bool((np.diff(blocks, axis=1) == 1).all() and (blocks[:, 0] % size == 0).all())
