"""How far a run is and where its time goes: counted, shown during the run, described at the end.

The main thread always waits for something: `loading` (weights), `input` (prompts and tokens),
`device` (the forward pass), `transfer` (device to host), `writing` (encoding and committing shards,
and room behind slow uploads) or `uploading` (the last uploads, at the end). The longest wait is the
bottleneck.

`Progress` only counts. `Display` shows it from its own thread, so that it can name what the run
waits for during the wait: a bar on a terminal and in a notebook, a plain line now and then
elsewhere. All of it goes to standard error; only the summary goes to standard output.
"""

import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, get_args

from layertap.core.amounts import amount
from layertap.core.bar import in_notebook, open_bar
from layertap.pipeline.bottleneck import describe_bottleneck
from layertap.shards.manifest import UNKEPT, Manifest
from layertap.shards.writer import Work

_SECONDS_BETWEEN_LINES = 10.0
_SECONDS_BETWEEN_DRAWINGS = 0.2
_LEAST_SHOWN = 0.05  # seconds; less is written as 0.0

Stage = Literal["loading", "input", "device", "transfer", "writing", "uploading"]


class Progress:
    """Counts of one start of a run; `resumed_...` counts what earlier starts committed."""

    def __init__(self, *, samples: int = 0, tokens: int = 0) -> None:
        self.samples = self.tokens = 0
        self.computed_tokens = 0
        """Tokens that the device computed, padding included."""
        self.shared_tokens = 0
        """Tokens of samples that were computed for another one: a prefix after its first time."""
        self.resumed_samples, self.resumed_tokens = samples, tokens
        self.waited: dict[Stage, float] = dict.fromkeys(get_args(Stage), 0.0)
        """Seconds that the main thread waited for each stage."""
        self.waits_for: Stage | None = None
        self._made = time.monotonic()
        self._begun: float | None = None

    @contextmanager
    def waiting_for(self, stage: Stage) -> Iterator[None]:
        """Count the block's time as waiting for `stage`."""
        begun, outer = time.monotonic(), self.waits_for
        self.waits_for = stage
        try:
            yield
        finally:
            self.waits_for = outer
            self.waited[stage] += time.monotonic() - begun

    def begin(self) -> None:
        """Start to measure speed: the model is loaded, the first step starts."""
        self._begun = time.monotonic()

    def add(self, samples: int, tokens: int, shared_tokens: int = 0) -> None:
        """Count the results of a step; `shared_tokens` of the tokens it did not compute."""
        self.samples += samples
        self.tokens += tokens
        self.shared_tokens += shared_tokens

    @property
    def seconds(self) -> float:
        """Seconds since this object was made."""
        return time.monotonic() - self._made

    @property
    def tokens_per_second(self) -> float:
        """Tokens of samples a second since `begin`."""
        return self.tokens / (time.monotonic() - self._begun) if self._begun is not None else 0.0


class Display:
    """Shows a `Progress` with the speed and the current wait, until it is closed. If `uploads`
    gives more than none, it also shows how many shards are on their way to a bucket.
    """

    def __init__(self, progress: Progress, uploads: Callable[[], int] = lambda: 0) -> None:
        self._progress = progress
        self._uploads = uploads
        seen = sys.stderr.isatty() or in_notebook()
        start = progress.resumed_samples
        self._bar = open_bar("samples", None, wanted=True, initial=start, delay=0) if seen else None
        self._closed = threading.Event()
        self._drawing = threading.Thread(target=self._draw, name="progress", daemon=True)
        self._drawing.start()

    def note(self, message: str) -> None:
        """Print a message that is not a number."""
        if self._bar is None:
            print(message, file=sys.stderr, flush=True)
        else:
            self._bar.write(message, file=sys.stderr)

    def close(self) -> None:
        """Remove the bar."""
        self._closed.set()
        self._drawing.join()
        if self._bar is not None:
            self._bar.close()

    def _draw(self) -> None:
        progress = self._progress
        pause = _SECONDS_BETWEEN_LINES if self._bar is None else _SECONDS_BETWEEN_DRAWINGS
        while not self._closed.wait(pause):
            speed = f"{progress.tokens_per_second:.0f} tokens/s, waiting for {progress.waits_for or 'nothing'}"
            if uploads := self._uploads():
                speed += f", {_count(uploads, 'shard')} on the way to the bucket"
            if self._bar is None:
                self.note(f"{progress.samples} samples, {speed}")
            else:
                self._bar.set_postfix_str(speed, refresh=False)
                self._bar.update(progress.resumed_samples + progress.samples - self._bar.n)
                self._bar.refresh()


def _nothing(*_: object) -> None:
    pass


@dataclass(frozen=True)
class Watch:
    """How the caller of a run follows it, and can end it."""

    begins: Callable[[Progress], None] = _nothing
    """Called when the run begins, with its progress, whose numbers change from then on."""
    proceed: Callable[[], None] = _nothing
    """Called while the device computes, and before a commit. An exception from it ends the run."""


@dataclass(frozen=True)
class RunSummary:
    """What this start of a run did, and the manifest that all its starts made."""

    manifest: Manifest
    output_dir: str
    """The folder of this host; each of several hosts has its own."""
    upload_url: str | None
    """The URL of the copy of this host's output."""
    resumed_shards: int
    """Shards that earlier starts had committed."""
    samples: int
    tokens: int
    computed_tokens: int
    """Tokens that the device computed, padding included."""
    shared_tokens: int
    """Tokens of samples that were not computed for them, because they are in a shared prefix."""
    seconds: float
    waited: dict[Stage, float]
    """Seconds that the main thread waited for each stage."""
    writing: Mapping[Work, float]
    """Seconds that the output's threads spent on each kind of work, at the same time."""

    def describe(self) -> str:
        """Lines for a person: what is where, the speed, and how the time was spent."""
        manifest = self.manifest
        verified = ", each verified there" if "://" in self.output_dir else ""
        written = f"{amount(len(manifest.shards), 'shard')} in {self.output_dir}{verified}"
        samples = amount(manifest.samples, "sample")
        uploaded = f"every shard verified in {self.upload_url}" if self.upload_url else ""
        if self.samples == 0 and self.resumed_shards:
            lines = [f"already complete: {samples} in {written}", uploaded]
            return "\n".join(filter(None, lines))
        resumed = f"resumed after {amount(self.resumed_shards, 'shard')} that earlier starts had committed"
        tasks, overlong, unkept = _left_out(manifest)
        lines = [
            f"{samples}, {amount(manifest.tokens, 'token')}, {written}",
            f"stopped at --max_tokens_total {manifest.stopped_at}; with more tokens, the same command continues"
            if manifest.stopped_at is not None
            else "",
            resumed if self.resumed_shards else "",
            f"skipped {tasks}; metadata.json lists them" if tasks else "",
            f"{_done_with_overlong(manifest)} {overlong}; metadata.json lists them" if overlong else "",
            f"left out {unkept}; metadata.json lists them" if unkept else "",
            f"{_count(manifest.nonfinite, 'activation')} with a NaN or an infinity; the manifest counts them by shard"
            if manifest.nonfinite
            else "",
            uploaded,
            self._speed(),
            describe_bottleneck(manifest, self.writing, self.waited["writing"], self._working),
            _describe_certificate(manifest),
        ]
        return "\n".join(filter(None, lines))

    @property
    def nothing_extracted(self) -> str | None:
        """Why the run has no sample, if all were left out; else None."""
        reasons = [] if self.manifest.samples else list(filter(None, _left_out(self.manifest)))
        return f"nothing was extracted: the run skipped {' and '.join(reasons)}" if reasons else None

    @property
    def _working(self) -> float:
        return max(self.seconds - self.waited["loading"], 1e-9)

    def _speed(self) -> str:
        real = (self.tokens - self.shared_tokens) / max(self.computed_tokens, 1)
        once = (
            f", {self.shared_tokens / self.tokens:.1%} are a prefix that was computed once"
            if self.shared_tokens
            else ""
        )
        shown = (f"{stage} {seconds:.1f} s" for stage, seconds in self.waited.items() if seconds >= _LEAST_SHOWN)
        waits = ", ".join(shown) or "nothing"
        return (
            f"{self.seconds:.1f} s, {self.tokens / self._working:.0f} tokens/s,"
            f" {real:.1%} of computed tokens were real{once}; waited for {waits}"
        )


def _left_out(manifest: Manifest) -> tuple[str, str, str]:
    """How many tasks and samples were left out or cut, and how many samples have no kept token;
    each is empty if there were none.
    """
    tasks, samples = (manifest.progress[name]["count"] for name in ("skipped_tasks", "overlong_samples"))
    longer = "longer than --max_seq_length"
    unkept = _count(manifest.progress.get(UNKEPT, {}).get("count", 0), "sample")
    return (
        _count(tasks, "malformed task"),
        f"{_count(samples, 'sample')} {longer}" if samples else "",
        f"{unkept} without a token that --keep_tokens keeps" if unkept else "",
    )


def _done_with_overlong(manifest: Manifest) -> str:
    """`skipped` or `truncated`: --overlong does one of them for the whole run."""
    return str(manifest.progress["overlong_samples"]["list"][0]["action"])


def _count(number: int, thing: str) -> str:
    return amount(number, thing) if number else ""


def _describe_certificate(manifest: Manifest) -> str:
    taps = [tap for tap in manifest.certificate.get("taps", ()) if tap["cosine_min"] is not None]
    if not taps:
        return ""
    worst = min(taps, key=lambda tap: tap["cosine_min"])
    return (
        f"certified against float32 on {manifest.certificate['prompts']} prompts: cosine at least"
        f" {worst['cosine_min']:.6f} (layer {worst['layer']}, {worst['site']}); metadata.json has every layer"
    )
