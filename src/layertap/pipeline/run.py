"""A whole run, from tasks to committed shards.

    read-ahead thread    main thread                     encoding thread, and one for each core
    records -> window -> stream.py: sample -> shard  ->  encode
                                                         |  writer thread
                                                         -> to the output (output.py): files,
                                                            manifest, checkpoint; or upload threads

`stream.py` yields samples with their positions, and this module collects them into shards. While
one shard fills, one is encoded, and one is written: three are in memory. A position counts as
progress only after the commit of the shard that ends there.

With `--max_tokens_total` the run ends at the sample that reaches it. The manifest is then complete,
has a position inside a window, and says where it stopped. A start with a higher limit treats it as
incomplete.

Whatever stops the run (a bad task, a full disk, Ctrl-C, SIGKILL), committed shards stay, the shard
that was filling is dropped, and the same command continues with the first sample that is not
committed.
"""

import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from functools import partial

from layertap.config.extract import ExtractConfig
from layertap.core.amounts import amount
from layertap.core.sample import Sample
from layertap.core.taps import name_layers
from layertap.errors import RunMismatchError
from layertap.pipeline import backend
from layertap.pipeline.background import BackgroundQueue
from layertap.pipeline.certificate import certify
from layertap.pipeline.hosts import join
from layertap.pipeline.metrics import metered
from layertap.pipeline.output import Output, open_output
from layertap.pipeline.progress import Display, Progress, RunSummary, Watch
from layertap.pipeline.session import Session
from layertap.pipeline.setup import Setup, prepare
from layertap.pipeline.stream import stream_samples
from layertap.pipeline.windows import Position, Window
from layertap.shards.manifest import STOPPED_AT, UNKEPT, Manifest, index_ranges
from layertap.shards.writer import ShardBuffer, ShardWriter


def extract(config: ExtractConfig) -> RunSummary:
    """Extract what `config` asks for, from where an earlier start of the same run stopped.

    Raises an InputError for what the user can fix, StorageError if output cannot be written.
    """
    backend.configure()
    hosts = join(config.hosts)
    setup = prepare(config, hosts)
    with (
        metered(config.worker, setup.config.output_place, config.metrics_port) as metrics,
        closing(Session()) as session,
    ):
        summary = extract_prepared(setup, session, Watch(metrics.begins))
    hosts.wait_for_all()
    return summary


def extract_prepared(setup: Setup, session: Session, watch: Watch) -> RunSummary:
    """The same for resolved settings; `session` may still have the model of an earlier run.

    An exception from `watch.proceed` ends the run between two steps. Full shards are committed
    before it is raised.
    """
    with open_output(setup) as output:
        manifest, start = output.resume(setup.manifest)
        if setup.config.certify and not manifest.certificate:
            certificate = certify(setup.model, setup.prompts, session, setup.config.certify, setup.shard_format)
            manifest = replace(manifest, certificate=certificate)
        output.begin(manifest)
        writer = output.writer(_reopened(manifest, setup.config.max_tokens_total), setup.shard_format)
        return _Run(setup, session, watch, writer, start, output).execute()


class _Run:
    """One start of a run, from `start` to the end of the dataset."""

    def __init__(
        self,
        setup: Setup,
        session: Session,
        watch: Watch,
        writer: ShardWriter,
        start: Position,
        output: Output,
    ) -> None:
        self._setup = setup
        self._session = session
        self._watch = watch
        self._writer = writer
        self._start = start
        self._output = output
        self._end = start  # the position after the last window that was read
        self._limit = setup.config.max_tokens_total
        self._unkept = list(writer.manifest.unkept_samples)
        self._left = sys.maxsize if self._limit is None else self._limit - writer.manifest.tokens
        self._resumed_shards = len(writer.manifest.shards)
        self._progress = Progress(samples=writer.manifest.samples, tokens=writer.manifest.tokens)

    def execute(self) -> RunSummary:
        self._watch.begins(self._progress)
        with closing(Display(self._progress, lambda: self._output.behind)) as display:
            if self._setup.hosts.gather([self._writer.manifest.complete]).all():
                if STOPPED_AT not in self._writer.manifest.progress:
                    next(self._windows(), None)
            else:
                self._announce(display)
                self._extract()
            with self._output.hurrying(), self._progress.waiting_for("uploading"):
                self._output.finish()
        return self._summary()

    def _extract(self) -> None:
        setup, reached = self._setup, self._start
        buffer = ShardBuffer(setup.shard_format, setup.config.shard_bytes)
        stream = stream_samples(
            self._session,
            setup.model,
            setup.prompts.rules,
            self._windows(),
            self._progress,
            self._watch.proceed,
            setup.prompts.kept,
        )
        gentle = setup.model.platform == "cpu"
        with (
            BackgroundQueue(waiting=0, gentle=gentle) as appends,
            self._writer.appending_by(appends.submit),
            BackgroundQueue(waiting=0, gentle=gentle, name="encoder") as queue,
            closing(stream),
            self._output.hurrying(),
        ):
            for position, sample in self._up_to_limit(stream):
                if sample.tokens and not buffer.has_room(sample):
                    self._commit(queue, buffer, reached, complete=False)
                if sample.tokens:
                    buffer.add(sample)
                else:
                    self._unkept.append(sample.sample_idx)
                reached = position
            if not self._writer.manifest.complete:
                self._commit(queue, buffer, self._end if self._left > 0 else reached, complete=True)
            with self._progress.waiting_for("writing"):
                queue.finish()
                appends.finish()

    def _up_to_limit(self, stream: Iterator[tuple[Position, Sample]]) -> Iterator[tuple[Position, Sample]]:
        """The same, up to the sample that reaches the run's limit of tokens."""
        while self._left > 0 and (found := next(stream, None)) is not None:
            self._left -= found[1].tokens
            yield found

    def _windows(self) -> Iterator[Window]:
        """The remaining windows; raises RunMismatchError if a complete run has any.

        One of several hosts may be complete before the others; it then only takes part in their
        steps.
        """
        complete = self._writer.manifest.complete
        for window in self._setup.prompts.windows(self._start):
            if complete:
                raise RunMismatchError(
                    f"{self._setup.config.output_dir} holds a complete run, but the dataset has more tasks now;"
                    " extract them into another --output_dir"
                )
            self._end = window.end
            yield window

    def _commit(self, queue: BackgroundQueue, buffer: ShardBuffer, position: Position, *, complete: bool) -> None:
        self._watch.proceed()
        samples, progress = buffer.take(), position.to_json()
        if complete and self._left <= 0:
            progress[STOPPED_AT] = self._limit
        if self._unkept:
            progress[UNKEPT] = {"count": len(self._unkept), "sample_idx": index_ranges(self._unkept)}
        with self._progress.waiting_for("uploading"):
            self._output.wait_for_room()
        with self._progress.waiting_for("writing"):
            queue.submit(partial(self._writer.commit, samples, progress, complete=complete))

    def _announce(self, display: Display) -> None:
        setup, manifest = self._setup, self._writer.manifest
        sites, layers = ", ".join(setup.shard_format.sites), name_layers(setup.shard_format.layers)
        model = " with adapter ".join((setup.manifest.model_path, *setup.config.adapter))
        run, of = setup.model.num_layers, setup.model.checkpoint.config.num_hidden_layers
        display.note(f"{model}: saving {sites} of {layers}; running {run} of {of} layers")
        if manifest.shards:
            shards = amount(len(manifest.shards), "shard")
            display.note(f"continuing after {shards}, {amount(manifest.samples, 'sample')}")

    def _summary(self) -> RunSummary:
        progress = self._progress
        return RunSummary(
            manifest=self._writer.manifest,
            output_dir=self._setup.config.output_url or self._setup.config.output_dir,
            upload_url=self._setup.upload_url,
            resumed_shards=self._resumed_shards,
            samples=progress.samples,
            tokens=progress.tokens,
            computed_tokens=progress.computed_tokens,
            shared_tokens=progress.shared_tokens,
            seconds=progress.seconds,
            waited=dict(progress.waited),
            writing=dict(self._writer.spent),
        )


def _reopened(manifest: Manifest, limit: int | None) -> Manifest:
    """The manifest; no longer complete if it ended at a limit that is higher now."""
    may_go_on = STOPPED_AT in manifest.progress and (limit is None or manifest.tokens < limit)
    return replace(manifest, complete=manifest.complete and not may_go_on)
