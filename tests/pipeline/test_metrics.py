"""What is counted, where it is written, and how it is served."""

import json
import socket
import urllib.error
import urllib.request
from contextlib import closing
from pathlib import Path

import pytest
from runs import changed, extract_some, finished, manifest, out

from layertap.config.extract import ExtractConfig
from layertap.errors import UsageError
from layertap.pipeline.metrics import Metrics, metered
from layertap.pipeline.progress import Progress, Watch
from layertap.pipeline.run import extract, extract_prepared
from layertap.pipeline.session import Session
from layertap.pipeline.setup import prepare


def lines(folder: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def get(url: str) -> str:
    with urllib.request.urlopen(url) as answer:
        assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
        return answer.read().decode()


def progress(samples: int, tokens: int, resumed: tuple[int, int] = (0, 0)) -> Progress:
    """What one start of a run has done, after earlier ones had committed `resumed`."""
    made = Progress(samples=resumed[0], tokens=resumed[1])
    made.add(samples, tokens)
    return made


@pytest.mark.whole
def test_a_run_leaves_its_counts_beside_its_output(config: ExtractConfig) -> None:
    extract(config)
    last = lines(out(config))[-1]
    totals = manifest(config)["totals"]
    assert (last["samples"], last["tokens"]) == (totals["samples"], totals["tokens"])
    assert last["worker"] == 0
    assert set(last["waited_seconds"]) >= {"loading", "device", "writing"}
    before = len(lines(out(config)))
    extract(config)  # complete already; its start is a line too
    assert len(lines(out(config))) > before


def test_a_run_that_is_refused_leaves_none(config: ExtractConfig) -> None:
    finished(config)
    before = lines(out(config))
    with pytest.raises(Exception, match="another run"):
        extract(changed(config, random_seed=1))
    assert lines(out(config)) == before


def test_a_run_without_a_sample_writes_no_line(tmp_path: Path) -> None:
    with metered(0, tmp_path, None) as metrics:
        metrics.begins(Progress())
    assert not list(tmp_path.iterdir())
    with metered(0, tmp_path, None) as metrics:
        metrics.begins(Progress(samples=2, tokens=50))  # of an earlier start
    assert len(lines(tmp_path)) == 1


def test_a_run_that_stored_nothing_and_removed_its_folder_says_nothing_of_metrics(tmp_path, capsys) -> None:
    with metered(0, tmp_path / "removed", None) as metrics:
        metrics.begins(progress(2, 50))
    assert not list(tmp_path.iterdir())
    assert capsys.readouterr().err == ""


def test_what_happened_to_a_worker_is_a_line_before_its_first_sample(tmp_path: Path) -> None:
    with metered(0, tmp_path, None) as metrics:
        metrics.leases_lost += 1
    assert [line["leases_lost"] for line in lines(tmp_path)] == [1]


def test_counts_add_up_over_runs() -> None:
    metrics = Metrics(3)
    assert metrics.of_this_run() == {}
    metrics.begins(progress(2, 50))
    metrics.begins(progress(1, 7, resumed=(4, 90)))
    sample = metrics.sample()
    assert (sample["worker"], sample["samples"], sample["tokens"]) == (3, 3, 57)
    assert (metrics.of_this_run()["samples"], metrics.of_this_run()["tokens"]) == (5, 97)


@pytest.mark.whole
def test_a_run_that_goes_on_counts_samples_and_tokens_from_its_beginning(config: ExtractConfig) -> None:
    committed = extract_some(config, 2)["totals"]
    metrics = Metrics(0)
    with closing(Session()) as session:
        extract_prepared(prepare(config), session, Watch(metrics.begins))
    totals = manifest(config)["totals"]
    assert 0 < committed["tokens"] < totals["tokens"]
    assert (metrics.of_this_run()["samples"], metrics.of_this_run()["tokens"]) == (totals["samples"], totals["tokens"])
    assert metrics.sample()["tokens"] == totals["tokens"] - committed["tokens"]


def test_prometheus_reads_what_is_served_on_loopback(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parser = pytest.importorskip("prometheus_client.parser")
    with metered(3, tmp_path, 0) as metrics:
        metrics.begins(progress(2, 50))
        url = capsys.readouterr().err.split()[-1]
        assert url.startswith("http://127.0.0.1:")
        families = {family.name: family for family in parser.text_string_to_metric_families(get(url))}
        with pytest.raises(urllib.error.HTTPError, match="404"):
            get(url.replace("/metrics", "/"))
    with pytest.raises(urllib.error.URLError):
        get(url)
    kinds = {name: family.type for name, family in families.items()}
    counted = "samples tokens computed_tokens dataset_shards leases_lost failed_heartbeats waited_seconds"
    assert kinds == dict.fromkeys(map("layertap_{}".format, counted.split()), "counter") | {
        "layertap_tokens_per_second": "gauge"
    }
    (tokens,) = families["layertap_tokens"].samples
    assert (tokens.name, tokens.value, tokens.labels) == ("layertap_tokens_total", 50, {"worker": "3"})
    stages = families["layertap_waited_seconds"].samples
    assert {"worker": "3", "stage": "device"} in [sample.labels for sample in stages]


def test_a_port_that_is_taken_is_refused(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UsageError, match=f"--metrics_port {port}: .* give another"), metered(0, tmp_path, port):
            pass


def test_a_port_that_is_none_is_refused(config: ExtractConfig) -> None:
    with pytest.raises(UsageError, match="--metrics_port must be 0 to 65535"):
        changed(config, metrics_port=70_000)
