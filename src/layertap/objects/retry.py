"""Retries, for when a bucket says "not now" or the network does not answer.

Retries use exponential backoff with full jitter (each pause is drawn between zero and a ceiling
that doubles) within a limit of time. So many workers that were refused together do not return
together, and an outage ends with a message, not a hang.

`stop` ends the waits of all threads at once, for a run that ends for another reason.
"""

import random
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from layertap.errors import StorageError

T = TypeVar("T")


class TransientError(Exception):
    """An error that is worth a retry. Backends raise it from their libraries' errors."""


class Retry:
    """How long, and how often, to try something."""

    def __init__(self, seconds: float = 300.0, *, first_pause: float = 0.5, longest_pause: float = 30.0) -> None:
        self.seconds = seconds
        self.first_pause = first_pause
        self.longest_pause = longest_pause
        self._stopped = threading.Event()

    def stop(self) -> None:
        """Forbid any further attempt."""
        self._stopped.set()

    @property
    def stopped(self) -> bool:
        """Return whether further attempts are forbidden."""
        return self._stopped.is_set()

    def __call__(self, what: str, attempt: Callable[[bool], T]) -> T:
        """Return what `attempt` returns. Its argument says whether an attempt before it failed, and
        so may have taken effect.

        Only a TransientError leads to another attempt. Raises StorageError, naming `what`, when
        time runs out.
        """
        begun, tries = time.monotonic(), 0
        while True:
            try:
                return attempt(tries > 0)
            except TransientError as error:
                tries += 1
                pause = random.uniform(0, min(self.longest_pause, self.first_pause * 2 ** min(tries - 1, 20)))
                waited = time.monotonic() - begun
                if waited + pause > self.seconds or self._stopped.wait(pause):
                    raise StorageError(
                        f"{what}: failed {tries} times in {waited:.0f} s, at last with: {_first_line(error)}. What was"
                        " committed is safe; check the network and the bucket, then run the same command again"
                    ) from error


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
