"""A whole run, from tasks to committed shards, as one line of stages.

    read-ahead thread      main thread                                     writer thread
    records -> window  ->  dispatch step i+1, then harvest step i  ->      encode, sync, rename, manifest, checkpoint
                                                                           -> upload threads, if there is a bucket

Programs compile while weights load. The device always has a step queued while the main thread harvests the one before;
windows are read, rendered and tokenised one ahead; one shard is written while another fills. In memory at any time: two
windows of token ids, the outputs of two steps, and three shards (filling, waiting, being written).

Whatever stops the run (a bad task, a full disk, Ctrl-C, SIGKILL), committed shards stay, the shard that was filling is
dropped, and the same command goes on with the first sample that is not committed.
"""

import time
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path

from layertap.config.extract import ExtractConfig
from layertap.errors import InputError, RunMismatchError
from layertap.extract import backend
from layertap.extract.background import BackgroundQueue, read_ahead
from layertap.extract.certificate import certify
from layertap.extract.checkpoint import checkpoint_bytes, checkpoint_name, checkpoint_path, resume, write_checkpoint
from layertap.extract.clock import Stage, StageClock
from layertap.extract.hosts import Agreed, agreed, join
from layertap.extract.metrics import metered
from layertap.extract.packing import Placement, Step, batch_arrays, step_shapes
from layertap.extract.progress import Progress, Watch
from layertap.extract.session import Session
from layertap.extract.setup import Setup, prepare
from layertap.extract.step import Outputs, StepProgram
from layertap.extract.stored import stored_sample
from layertap.extract.windows import Position, Window, read_windows
from layertap.model.qwen2 import Qwen2
from layertap.objects.files import remove_leftovers
from layertap.objects.ownership import exclusive
from layertap.shards.manifest import Manifest
from layertap.shards.mirror import Checkpoint, Mirror, open_mirror
from layertap.shards.writer import ShardBuffer, ShardWriter

_POLL_SECONDS = 0.005


@dataclass(frozen=True)
class RunSummary:
    """What this start of a run did, and the manifest that all its starts made."""

    manifest: Manifest
    output_dir: str
    """The folder of this host, which has its own where there are several."""
    upload_url: str | None
    """Where this host's output was copied to."""
    resumed_shards: int
    """Shards that earlier starts had committed."""
    samples: int
    tokens: int
    computed_tokens: int
    """Tokens that the device computed, padding included."""
    seconds: float
    waited: dict[Stage, float]
    """Seconds that the main thread waited for each stage."""


def extract(config: ExtractConfig) -> RunSummary:
    """Extract what `config` asks for into its output folder, going on where an earlier start of the same run stopped.

    Raises an InputError for what the user can mend, StorageError where output cannot be written.
    """
    backend.configure()
    hosts = join(config.hosts)
    setup = prepare(config, hosts)
    with (
        metered(config.worker, setup.config.output_folder, config.metrics_port) as metrics,
        closing(Session()) as session,
    ):
        summary = extract_prepared(setup, session, Watch(metrics.begins))
    hosts.part()
    return summary


def extract_prepared(setup: Setup, session: Session, watch: Watch) -> RunSummary:
    """The same for settings that are resolved already, with the model of an earlier run where it is the same.

    What `watch.proceed` raises ends the run between two steps; whole shards are committed before it comes out.
    """
    output = setup.config.output_folder
    with exclusive(output):
        remove_leftovers(output)
        checkpoint = _checkpoint_path(setup)
        beside = Checkpoint(checkpoint_name(setup.name), checkpoint_bytes) if checkpoint is not None else None
        with open_mirror(setup.upload_url, output, setup.config.upload, beside) as mirror:
            if mirror is not None:
                mirror.reconcile(setup.manifest)
            manifest, start = resume(output, setup.manifest, checkpoint, held=mirror.held if mirror is not None else 0)
            if setup.config.certify and not manifest.certificate:
                manifest = replace(manifest, certificate=certify(setup, session))
            if mirror is not None:
                mirror.begin(manifest)
            writer = ShardWriter(
                output, manifest, setup.shard_format, partial(_follow_commit, output, checkpoint, mirror)
            )
            return _Run(setup, session, watch, writer, start, mirror).execute()


class _Run:
    """One start of a run, from `start` to the end of the dataset."""

    def __init__(
        self,
        setup: Setup,
        session: Session,
        watch: Watch,
        writer: ShardWriter,
        start: Position,
        mirror: Mirror | None,
    ) -> None:
        self._setup = setup
        self._session = session
        self._watch = watch
        self._writer = writer
        self._mirror = mirror
        self._start = start
        self._resumed_shards = len(writer.manifest.shards)
        self._buffer = ShardBuffer(setup.shard_format, setup.config.shard_bytes)
        self._reached = start  # the position behind the last sample in the buffer
        self._end = start  # the position behind the last window
        self._computed_tokens = 0
        self._clock = StageClock()
        self._progress = Progress(self._clock, samples=writer.manifest.samples, tokens=writer.manifest.tokens)

    def execute(self) -> RunSummary:
        self._watch.begins(self._progress)
        try:
            if self._setup.hosts.gather([self._writer.manifest.complete]).all():
                next(self._windows(), None)
            else:
                self._extract()
            if self._mirror is not None:
                with self._clock.waiting_for("uploading"):
                    self._mirror.finish()
        finally:
            self._progress.close()
        return RunSummary(
            manifest=self._writer.manifest,
            output_dir=self._setup.config.output_dir,
            upload_url=self._setup.upload_url,
            resumed_shards=self._resumed_shards,
            samples=self._progress.samples,
            tokens=self._progress.tokens,
            computed_tokens=self._computed_tokens,
            seconds=self._clock.elapsed,
            waited=dict(self._clock.seconds),
        )

    def _extract(self) -> None:
        self._announce()
        program = self._session.program(self._setup)
        with read_ahead(self._windows()) as windows:
            self._extract_windows(windows, program)

    def _extract_windows(self, windows: Iterator[Window], program: StepProgram) -> None:
        with self._session.loading(self._setup) as loading:
            steps = self._compiling(self._agreed(windows), program)
            first = next(steps, None)  # its programs compile while weights load
            with self._clock.waiting_for("loading"):
                model = loading.result()
        self._progress.begin()
        with BackgroundQueue(gentle=backend.platform() == "cpu") as queue:
            for flight in _one_behind(self._dispatch(chain([first] if first else [], steps), program, model)):
                self._collect(flight, program, queue)
                del flight  # or its outputs would live until the step after the next one has been dispatched
            if not self._writer.manifest.complete:
                self._commit(queue, self._end, complete=True)
            with self._clock.waiting_for("writing"):
                queue.finish()

    def _windows(self) -> Iterator[Window]:
        """What is left to do; raises RunMismatchError where there is anything, although the run is complete.

        One of several hosts may be complete before the others, and then keeps them company.
        """
        complete = self._writer.manifest.complete
        for window in read_windows(self._setup.records(), self._setup.maker, self._setup.rules, self._start):
            if complete:
                raise RunMismatchError(
                    f"{self._setup.config.output_dir} holds a complete run, but the dataset has more tasks now;"
                    " extract them into another --output_dir"
                )
            yield window

    def _agreed(self, windows: Iterator[Window]) -> Iterator[Agreed]:
        rules = self._setup.rules
        return agreed(windows, step_shapes(rules.ladder, rules.batch_size, rules.devices), self._setup.hosts)

    def _compiling(self, agreements: Iterator[Agreed], program: StepProgram) -> Iterator[Agreed]:
        """The same, each when the compilation of its steps has begun."""
        while (current := self._next(agreements)) is not None:
            for _, step in current.steps:
                program.compile((step.rows, step.length))
            yield current

    def _next(self, agreements: Iterator[Agreed]) -> Agreed | None:
        with self._clock.waiting_for("input"):
            return next(agreements, None)

    def _dispatch(self, agreements: Iterable[Agreed], program: StepProgram, model: Qwen2) -> Iterator["_Flight"]:
        """Start the steps."""
        for current in agreements:
            window = current.window
            token_ids = [sample.token_ids for sample in window.samples] if window is not None else []
            for before, step in current.steps:
                with self._clock.waiting_for("device"):
                    outputs = program.dispatch(model, *batch_arrays(step, token_ids))
                yield _Flight(window, step, before, outputs)
            self._end = self._end if window is None else window.end

    def _collect(self, flight: "_Flight", program: StepProgram, queue: BackgroundQueue) -> None:
        """Wait for a step, and let its samples join the shard; a shard that has no room is committed first."""
        with self._clock.waiting_for("device"):
            while not program.is_ready(flight.outputs):
                self._watch.proceed()
                time.sleep(_POLL_SECONDS)  # a blocking wait would hold back Ctrl-C until the step ends
        with self._clock.waiting_for("transfer"):
            arrays = program.harvest(flight.outputs)
        for window, emitted, place in flight.uncommitted():
            sample = stored_sample(window, place, arrays)
            if not self._buffer.has_room(sample):
                self._commit(queue, self._reached, complete=False)
            self._buffer.add(sample)
            self._reached = window.position(emitted)
            self._progress.add(1, sample.tokens)
        self._computed_tokens += flight.step.computed_tokens

    def _commit(self, queue: BackgroundQueue, position: Position, *, complete: bool) -> None:
        self._watch.proceed()
        samples = self._buffer.take()
        with self._clock.waiting_for("writing"):
            queue.submit(partial(self._writer.commit, samples, position.to_json(), complete=complete))

    def _announce(self) -> None:
        setup, manifest = self._setup, self._writer.manifest
        sites, layers = ", ".join(setup.shard_format.sites), len(setup.shard_format.layers)
        self._progress.note(f"{setup.config.model_path}: {sites} of {layers} layers, running {setup.num_layers}")
        if manifest.shards:
            self._progress.note(f"going on after {len(manifest.shards)} shards, {manifest.samples} samples")


@dataclass(frozen=True, eq=False)
class _Flight:
    """A step on the device; `before` samples of its window were emitted by earlier steps.

    Without a window it keeps other hosts company.
    """

    window: Window | None
    step: Step
    before: int
    outputs: Outputs

    def uncommitted(self) -> Iterator[tuple[Window, int, Placement]]:
        """The step's samples that are not committed yet, each with how many of its window are emitted when it is."""
        if self.window is None:
            return
        for emitted, place in enumerate(self.step.placements, self.before + 1):
            if emitted > self.window.start.emitted:
                yield self.window, emitted, place


def _one_behind(flights: Iterator[_Flight]) -> Iterator[_Flight]:
    """The same flights, each held back until the next one has started.

    Where the input ends in an error, the last flight still comes out: it may complete a shard.
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


def _checkpoint_path(setup: Setup) -> Path | None:
    return checkpoint_path(setup.config.checkpoint_folder, setup.name) if setup.config.checkpointing else None


def _follow_commit(output: Path, checkpoint: Path | None, mirror: Mirror | None, manifest: Manifest) -> None:
    """What comes after a local commit."""
    if checkpoint is not None:
        write_checkpoint(checkpoint, output, manifest)
    if mirror is not None:
        mirror.offer(manifest)
