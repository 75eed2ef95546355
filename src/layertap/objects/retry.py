"""Trying again, when a bucket says "not now" or the network says nothing.

Exponential backoff with full jitter (each pause is drawn between nothing and a ceiling that
doubles), bounded in time: many workers that were refused at once do not come back at once, and an
outage ends in a message and not in a hang.

`stop` ends the waiting of all threads at once, for a run that ends for another reason.
"""

import random
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from layertap.errors import StorageError

T = TypeVar("T")


class TransientError(Exception):
    """What is worth another attempt; backends raise it from what their libraries raise."""


class Retry:
    """How long, and how often, something is tried."""

    def __init__(self, seconds: float = 300.0, *, first_pause: float = 0.5, longest_pause: float = 30.0) -> None:
        self.seconds = seconds
        self.first_pause = first_pause
        self.longest_pause = longest_pause
        self._stopped = threading.Event()

    def stop(self) -> None:
        """Let nobody try again from now on."""
        self._stopped.set()

    @property
    def stopped(self) -> bool:
        """Whether nobody is to try again."""
        return self._stopped.is_set()

    def __call__(self, what: str, attempt: Callable[[bool], T]) -> T:
        """What `attempt` returns; it is told whether an attempt before it failed, and so may have
        taken effect.

        Only a TransientError leads to another attempt. Raises StorageError, naming `what`, when
        time has run out.
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
