"""What the user sees while a run goes on: a bar on a terminal, a plain line now and then anywhere else.

A thread of its own draws it, so that it tells what the run is waiting for while it waits, be it a compilation or a full
disk's queue. Everything goes to standard error; standard output keeps the summary alone.
"""

import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from layertap.core.bar import Bar
from layertap.extract.clock import StageClock

_SECONDS_BETWEEN_LINES = 10.0
_SECONDS_BETWEEN_DRAWINGS = 0.2


def _nothing(*_: object) -> None:
    pass


@dataclass(frozen=True)
class Watch:
    """How the caller of a run follows it, and can end it."""

    begins: "Callable[[Progress], None]" = _nothing
    """Told of the run's progress when it begins; what that says then changes as the run goes on."""
    proceed: Callable[[], None] = _nothing
    """Called often while the run waits for the device, and before each commit; what it raises ends the run."""


class Progress:
    """Counts samples and tokens, and shows them with the speed and what the run is waiting for, until it is closed.

    `samples` and `tokens` are what earlier starts of the run committed; they are counted apart.
    """

    def __init__(self, clock: StageClock, *, samples: int = 0, tokens: int = 0, terminal: bool | None = None) -> None:
        self.samples = 0
        self.tokens = 0
        self.resumed_samples, self.resumed_tokens = samples, tokens
        self.clock = clock
        self._begun: float | None = None
        shown = sys.stderr.isatty() if terminal is None else terminal
        self._bar = Bar(unit=" samples", initial=samples, dynamic_ncols=True, leave=False) if shown else None
        self._closed = threading.Event()
        self._drawing = threading.Thread(target=self._draw, name="progress", daemon=True)
        self._drawing.start()

    def note(self, message: str) -> None:
        """Say something that is not a number."""
        if self._bar is None:
            print(message, file=sys.stderr, flush=True)
        else:
            self._bar.write(message, file=sys.stderr)

    def begin(self) -> None:
        """Start to measure speed: the model is loaded, the first step goes out."""
        self._begun = time.monotonic()

    def add(self, samples: int, tokens: int) -> None:
        """Count what a step brought."""
        self.samples += samples
        self.tokens += tokens
        if self._bar is not None:
            self._bar.update(samples)

    @property
    def tokens_per_second(self) -> float:
        """Real tokens a second since `begin`."""
        return self.tokens / (time.monotonic() - self._begun) if self._begun is not None else 0.0

    def close(self) -> None:
        """Take the bar away."""
        self._closed.set()
        self._drawing.join()
        if self._bar is not None:
            self._bar.close()

    def _draw(self) -> None:
        pause = _SECONDS_BETWEEN_LINES if self._bar is None else _SECONDS_BETWEEN_DRAWINGS
        while not self._closed.wait(pause):
            standing = f"{self.tokens_per_second:.0f} tokens/s, waiting for {self.clock.current or 'nothing'}"
            if self._bar is not None:
                self._bar.set_postfix_str(standing, refresh=True)
            else:
                self.note(f"{self.samples} samples, {standing}")
