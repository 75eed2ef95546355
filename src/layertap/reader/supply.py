"""The tokens of one rank in one epoch, in the order of their pieces; pieces are read ahead, several at once."""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial

import numpy as np

from layertap.reader.pieces import Cursor, Pieces, Rows
from layertap.reader.workers import Workers


@dataclass(frozen=True, eq=False)
class Share:
    """What is still to come: from a place in the epoch's order on, at most so many tokens."""

    order: np.ndarray
    start: Cursor
    most: int


class Supply:
    """Hands out a share in whatever lengths are asked for.

    Whoever made it dismisses its `readers`. Asked for more after that, it raises CancelledError.
    """

    def __init__(self, pieces: Pieces, share: Share) -> None:
        self._pieces = pieces
        self._numbers = iter(share.order[share.start.piece :].tolist())
        self._skip = share.start.row
        self._left = share.most
        self._open: Rows | None = None
        self._ahead: deque[Future[Rows]] = deque()
        self.readers = Workers(pieces.readers, "read-activations")

    def take(self, wanted: int) -> Iterator[Rows]:
        """The next tokens, `wanted` in all, or as many as there are."""
        wanted = min(wanted, self._left)
        while wanted and (rows := self._next()) is not None:
            self._open = rows[wanted:] if len(rows) > wanted else None
            part = rows[:wanted]
            wanted -= len(part)
            self._left -= len(part)
            yield part

    def _next(self) -> Rows | None:
        """What is left of the open piece, or the next one."""
        if self._open is not None:
            return self._open
        while len(self._ahead) < 2 * self._pieces.readers and (number := next(self._numbers, None)) is not None:
            self._ahead.append(self.readers.submit(partial(self._pieces.read, number)))
        if not self._ahead:
            return None
        rows, skip = self._ahead.popleft().result(), self._skip
        self._skip = 0
        return rows[skip:]
