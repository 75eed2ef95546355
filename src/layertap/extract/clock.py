"""Where the time goes: what the run has been waiting for, in seconds.

The main thread is always waiting for one thing or another: `loading` (weights), `input` (prompts and tokens),
`device` (the forward pass), `transfer` (device to host), `writing` (encoding and committing shards, and room behind
slow uploads) or `uploading` (the last uploads, at the end). What it waits for longest is the bottleneck.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, get_args

Stage = Literal["loading", "input", "device", "transfer", "writing", "uploading"]


class StageClock:
    """Seconds spent waiting for each stage, and which one is being waited for now."""

    def __init__(self) -> None:
        self.seconds: dict[Stage, float] = dict.fromkeys(get_args(Stage), 0.0)
        self.current: Stage | None = None
        self._begun = time.monotonic()

    @contextmanager
    def waiting_for(self, stage: Stage) -> Iterator[None]:
        """Count the block's time to `stage`."""
        begun, outer = time.monotonic(), self.current
        self.current = stage
        try:
            yield
        finally:
            self.current = outer
            self.seconds[stage] += time.monotonic() - begun

    @property
    def elapsed(self) -> float:
        """Seconds since the clock was made."""
        return time.monotonic() - self._begun
