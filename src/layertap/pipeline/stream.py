"""From windows to samples: what the device computes, in the order in which a run stores it.

    read-ahead thread      this thread
    window             ->  dispatch step i+1, then harvest step i and cut it into samples

The first step that needs a prefix computes it. It is then put before each of the step's samples
(prefix.py). On an accelerator some threads copy the samples (cutting.py).

Programs compile while weights load. The device always has a step queued while this thread harvests
the step before; windows are read, rendered and tokenised one ahead. In memory at any time: two
windows of token ids and the outputs of two steps.

Nothing here knows of files, shards, manifests or commits. A run puts the samples into shards, and
others may return them from memory. Each sample comes with the position after it: a stream over the
windows from that position yields exactly the samples that follow.

You may close the generator at any moment. Steps on the device are then dropped. If a window is
being read, its thread finishes and drops it too.
"""

import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from itertools import chain

from layertap.core.sample import Sample
from layertap.errors import InputError
from layertap.model.decoder import Decoder
from layertap.pipeline.background import read_ahead
from layertap.pipeline.cutting import Cut, copiers, cutter
from layertap.pipeline.hosts import Agreed, agree_on_steps
from layertap.pipeline.kept import KeptTokens
from layertap.pipeline.packing import Step, batch_arrays, step_kinds
from layertap.pipeline.prefix import Prefixes
from layertap.pipeline.progress import Progress
from layertap.pipeline.session import OpenedModel, Session
from layertap.pipeline.step import Beginning, Outputs, StepProgram
from layertap.pipeline.windows import Position, Window, WindowRules

_POLL_SECONDS = 0.005
_ALL_TOKENS = KeptTokens()


def stream_samples(
    session: Session,
    model: OpenedModel,
    rules: WindowRules,
    windows: Iterator[Window],
    progress: Progress,
    proceed: Callable[[], None],
    kept: KeptTokens = _ALL_TOKENS,
) -> Generator[tuple[Position, Sample], None, None]:
    """Yield the samples of `windows`, packed by `rules`, each with the position after it and with
    the `kept` tokens, maybe none.

    It counts in `progress`, and calls `proceed` often while it waits for the device. Raises what
    reading the windows raises (an InputError comes after the samples of the steps before it),
    HostsStoppedError if another host is in trouble, and DeviceError.
    """
    program = session.program(model)
    prefixes = rules.prefixes
    kinds = step_kinds(rules.ladder, rules.batch_size, rules.devices, len(prefixes.shared))
    with cutter(copiers(model), kept) as cut, read_ahead(windows) as ahead:
        agreements = _compile_ahead(agree_on_steps(ahead, kinds, model.hosts), program, prefixes, progress)
        with session.loading(model) as loading:
            first = next(agreements, None)  # its programs compile while weights load
            with progress.waiting_for("loading"):
                weights = loading.result()
        progress.begin()
        device = _Device(program, weights, prefixes, progress)
        for flight in _one_behind(device.dispatch(chain([first] if first else [], agreements))):
            yield from _land(flight, program, progress, proceed, cut)
            del flight  # or its outputs would live until the step after the next one has been dispatched


@dataclass(frozen=True, eq=False)
class _Flight:
    """A step on the device. Without a window it only takes part in other hosts' steps."""

    window: Window | None
    step: Step
    before: int
    """How many of the window's samples come from earlier steps."""
    outputs: Outputs
    beginning: Beginning | None
    """The prefix of its samples."""


def _compile_ahead(
    agreements: Iterator[Agreed], program: StepProgram, prefixes: Prefixes, progress: Progress
) -> Iterator[Agreed]:
    """The same, each after the compilation of its steps has begun."""
    while True:
        with progress.waiting_for("input"):
            current = next(agreements, None)
        if current is None:
            return
        for _, step in current.steps:
            program.compile((step.rows, step.length), prefixes.length(step.prefix))
        yield current


class _Device:
    """Runs steps, and keeps computed prefixes."""

    def __init__(self, program: StepProgram, weights: Decoder, prefixes: Prefixes, progress: Progress) -> None:
        self._program = program
        self._weights = weights
        self._prefixes = prefixes
        self._progress = progress
        self._beginnings: dict[int, Beginning] = {}

    def dispatch(self, agreements: Iterator[Agreed]) -> Iterator[_Flight]:
        """Start the steps."""
        for current in agreements:
            window = current.window
            token_ids = [sample.token_ids for sample in window.samples] if window is not None else []
            for before, step in current.steps:
                with self._progress.waiting_for("device"):
                    beginning = self._beginning(step.prefix)
                    outputs = self._program.dispatch(self._weights, *batch_arrays(step, token_ids), beginning)
                yield _Flight(window, step, before, outputs, beginning)

    def _beginning(self, number: int) -> Beginning | None:
        if number == 0:
            return None
        if number not in self._beginnings:
            computed = self._program.begin(self._weights, self._prefixes.shared[number - 1])
            self._beginnings[number] = computed
            self._progress.computed_tokens += computed.computed_tokens
        return self._beginnings[number]


def _one_behind(flights: Iterator[_Flight]) -> Iterator[_Flight]:
    """The same flights, each held back until the next one has started.

    If the input ends in an error, the last flight still comes out: it may complete a shard.
    """
    previous = None
    try:
        for flight in flights:
            if previous is not None:
                yield previous
            previous = flight
    except InputError:
        if previous is not None:
            yield previous
        raise
    if previous is not None:
        yield previous


def _land(
    flight: _Flight, program: StepProgram, progress: Progress, proceed: Callable[[], None], cut: Cut
) -> Iterator[tuple[Position, Sample]]:
    """Wait for a step, and cut out the samples that are not committed yet."""
    with progress.waiting_for("device"):
        while not program.is_ready(flight.outputs):
            proceed()
            time.sleep(_POLL_SECONDS)  # a blocking wait would delay Ctrl-C until the step ends
    with progress.waiting_for("transfer"):
        arrays = program.harvest(flight.outputs, flight.beginning)
    progress.computed_tokens += flight.step.computed_tokens
    window = flight.window
    if window is None:
        return
    placed = [
        (emitted, window.samples[place.sample], place)
        for emitted, place in enumerate(flight.step.placements, flight.before + 1)
        if emitted > window.start.emitted
    ]
    samples = cut([(whole, place) for _, whole, place in placed], arrays, flight.beginning)
    for (emitted, whole, place), sample in zip(placed, samples, strict=True):
        progress.add(1, whole.tokens, whole.tokens - place.length)
        yield window.position(emitted), sample
