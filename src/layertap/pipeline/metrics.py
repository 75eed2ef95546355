"""A worker's counts: a line of JSON at intervals, and a page for Prometheus.

`metrics.jsonl` is beside the output. It gets one object a line, every ten seconds and at the end;
every start of the worker appends to it. The first line comes when there is something to count, so a
run that is refused before its first step leaves no file. It is not output: it holds times, and
nothing here reads it. With `--metrics_port` the same numbers are served at
`http://127.0.0.1:PORT/metrics`, on loopback only; if you want them elsewhere, use an agent or a
tunnel.

If the output goes to a URL, so do these lines, once a minute and at the end. Each start has its own
object there, `metrics/{time}_{nonce}.jsonl`, because a bucket cannot append. If a bucket refuses
them, you get a message, and nothing stops.

Why not `prometheus_client`: it made this file six lines shorter, and every run took a tenth of a
second longer to import.
"""

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from uuid import uuid4

from layertap.core.strict_json import dump_json
from layertap.errors import LayertapError, UsageError
from layertap.objects import open_store
from layertap.objects.base import OWNED
from layertap.objects.content import MemoryContent
from layertap.objects.retry import Retry
from layertap.pipeline.progress import Progress

FILE_NAME = "metrics.jsonl"

_SECONDS_BETWEEN_LINES = 10.0
_SECONDS_BETWEEN_WRITES = 60.0  # to a bucket
_SECONDS_FOR_THE_LAST = 10.0
_HELP = {
    "samples": ("counter", "Samples extracted since the process began."),
    "tokens": ("counter", "Tokens extracted since the process began."),
    "computed_tokens": ("counter", "Tokens that the device computed since the process began, padding included."),
    "tokens_per_second": ("gauge", "Real tokens a second, over the current run or dataset shard."),
    "dataset_shards": ("counter", "Dataset shards committed since the process began."),
    "leases_lost": ("counter", "Dataset shards that were taken over from this worker."),
    "failed_heartbeats": ("counter", "Heartbeats that could not be written and were tried again."),
}


class Metrics:
    """Counts over all runs of a process."""

    def __init__(self, worker: int) -> None:
        self.worker = worker
        self.dataset_shard: str | None = None
        self.dataset_shards = 0
        self.leases_lost = 0
        self.failed_heartbeats = 0
        self._runs: list[Progress] = []

    def begins(self, progress: Progress) -> None:
        """Count another run from now on."""
        self._runs.append(progress)

    @property
    def counts_anything(self) -> bool:
        """Whether a sample was extracted, now or by an earlier start, or anything of a fleet
        happened.
        """
        happened = self.dataset_shards or self.leases_lost or self.failed_heartbeats
        return bool(happened) or any(run.samples or run.resumed_samples for run in self._runs)

    def of_this_run(self) -> dict[str, Any]:
        """The progress of the current run, with the commits of its earlier starts."""
        if not self._runs:
            return {}
        run = self._runs[-1]
        return {
            "samples": run.resumed_samples + run.samples,
            "tokens": run.resumed_tokens + run.tokens,
            "tokens_per_second": round(run.tokens_per_second, 1),
            "waiting_for": run.waits_for,
        }

    def sample(self) -> dict[str, Any]:
        """The current value of every number."""
        runs = list(self._runs)
        stages = runs[-1].waited if runs else {}
        return {
            "time": round(time.time(), 3),
            "worker": self.worker,
            "dataset_shard": self.dataset_shard,
            "samples": sum(run.samples for run in runs),
            "tokens": sum(run.tokens for run in runs),
            "computed_tokens": sum(run.computed_tokens for run in runs),
            "tokens_per_second": round(runs[-1].tokens_per_second, 1) if runs else 0.0,
            "waiting_for": runs[-1].waits_for if runs else None,
            "waited_seconds": {stage: round(sum(run.waited[stage] for run in runs), 3) for stage in stages},
            "dataset_shards": self.dataset_shards,
            "leases_lost": self.leases_lost,
            "failed_heartbeats": self.failed_heartbeats,
        }


def prometheus_text(sample: dict[str, Any]) -> str:
    """A sample in the text format of Prometheus."""
    label = f'worker="{sample["worker"]}"'
    lines = []
    for name, (kind, text) in _HELP.items():
        full = f"layertap_{name}_total" if kind == "counter" else f"layertap_{name}"
        lines += [f"# HELP {full} {text}", f"# TYPE {full} {kind}", f"{full}{{{label}}} {sample[name]}"]
    full = "layertap_waited_seconds_total"
    lines += [f"# HELP {full} Seconds spent waiting for each stage.", f"# TYPE {full} counter"]
    lines += [f'{full}{{{label},stage="{stage}"}} {seconds}' for stage, seconds in sample["waited_seconds"].items()]
    return "\n".join(lines) + "\n"


@contextmanager
def metered(worker: int, place: str | Path, port: int | None) -> Iterator[Metrics]:
    """Counters while the block runs: their lines go to `place`, a folder or a URL, and `port`
    serves them.

    Raises UsageError if the port cannot be used.
    """
    metrics = Metrics(worker)
    ended = threading.Event()
    far = "://" in str(place)
    lines = _FarLines(str(place)) if far else _FileLines(Path(place) / FILE_NAME)
    writer = threading.Thread(target=_write_lines, args=(metrics, lines, ended), name="metrics", daemon=True)
    writer.start()
    try:
        with _served(metrics, port):
            yield metrics
    finally:
        ended.set()
        writer.join(_SECONDS_FOR_THE_LAST if far else None)


def _write_lines(metrics: Metrics, lines: "_FileLines | _FarLines", ended: threading.Event) -> None:
    while True:
        last = ended.wait(_SECONDS_BETWEEN_LINES)
        if metrics.counts_anything:
            lines.add(dump_json(metrics.sample()) + "\n", last=last)
        if last:
            return


class _FileLines:
    """Lines that are appended to a file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def add(self, line: str, *, last: bool) -> None:
        """Append a line."""
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(line)
        except FileNotFoundError:
            pass  # the run stored nothing, and has removed the folder that it made
        except OSError as error:  # a full disk stops the run where its output is written, not here
            print(f"{self._path}: cannot be written: {error.strerror}", file=sys.stderr)


class _FarLines:
    """Lines in an object of their own; each write writes all of them again."""

    def __init__(self, url: str) -> None:
        self._url = url
        began = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        self._name = f"metrics/{began}_{uuid4().hex[:8]}.jsonl"
        self._lines: list[str] = []
        self._written = time.monotonic()

    def add(self, line: str, *, last: bool) -> None:
        """Append a line; write all lines if it is time to."""
        self._lines.append(line)
        if not last and time.monotonic() - self._written < _SECONDS_BETWEEN_WRITES:
            return
        self._written = time.monotonic()
        try:
            with closing(open_store(self._url, Retry(_SECONDS_FOR_THE_LAST / 2))) as store:
                store.put(self._name, MemoryContent(["".join(self._lines).encode()]), replaces=OWNED)
        except LayertapError as error:
            print(f"metrics are not written: {error}", file=sys.stderr)


@contextmanager
def _served(metrics: Metrics, port: int | None) -> Iterator[None]:
    if port is None:
        yield
        return
    try:
        server = ThreadingHTTPServer(("127.0.0.1", port), type("Handler", (_Handler,), {"metrics": metrics}))
    except OSError as error:
        raise UsageError(f"--metrics_port {port}: {error.strerror}; give another, or 0 for any that is free") from error
    print(f"metrics are at http://127.0.0.1:{server.server_port}/metrics", file=sys.stderr, flush=True)
    thread = threading.Thread(target=server.serve_forever, name="metrics-server", daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    metrics: Metrics

    def do_GET(self) -> None:
        """Answer /metrics."""
        found = self.path.partition("?")[0] == "/metrics"
        body = prometheus_text(self.metrics.sample()).encode() if found else b"the metrics are at /metrics\n"
        self.send_response(200 if found else 404)
        self.send_header("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Do not log requests."""
