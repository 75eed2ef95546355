"""`create --dry_run` without a project, credentials, or Google's client."""

import json
from pathlib import Path

import commands
import pytest
from fakes.cloud_tpu import FakeCloudTpu
from manage_tpus import ALL, TWO_ZONES

from layertap.cli import main
from layertap.tpu.machine import count_chips

CREATES = [f"create {name} for worker {worker}" for worker, name in ALL.items()]
COST = "That is 8 TPUs of type v5litepod-8 (8 chips each, 64 chips in all), spot, one for each worker."


@pytest.fixture
def nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make this a machine outside Google's cloud, where nobody is logged in."""
    for name in ("GOOGLE_CLOUD_PROJECT", "GOOGLE_APPLICATION_CREDENTIALS", "GCLOUD_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path))
    monkeypatch.setenv("NO_GCE_CHECK", "true")


@pytest.mark.usefixtures("nobody")
def test_without_credentials_it_is_the_plan_for_an_empty_project(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tpu", "create", *TWO_ZONES.split(), "--dry_run"]) == 0
    told = capsys.readouterr()
    assert told.out.splitlines() == CREATES
    reason, *_, cost, idle = told.err.splitlines()
    assert "gcloud auth application-default login" in reason
    assert "In a project that has no TPUs yet" in told.err
    assert cost == COST
    assert idle == "Without --startup they would be idle but cost the same."


@pytest.mark.usefixtures("nobody")
def test_what_looks_or_acts_still_needs_credentials(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tpu", "create", "--zones", "us-central1-a"]) == 2
    assert main(["tpu", "status"]) == 2
    assert "credentials" in capsys.readouterr().err


def test_without_a_project_the_plan_says_so(
    cloud: FakeCloudTpu, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GOOGLE_CLOUD_PROJECT", raising=False)
    words = ["--zones", "us-central1-a", "--dry_run", "--json", "--api_endpoint", cloud.endpoint]
    assert main(["tpu", "create", *words]) == 0
    told = capsys.readouterr()
    assert json.loads(told.out) == {"fleet": "tpu", "actions": ["create tpu-us-central1-a-0 for worker 0"]}
    assert "no Google Cloud project is known" in told.err


def test_without_googles_client_too(tmp_path: Path) -> None:
    program = (
        "import sys; sys.modules['google.cloud'] = sys.modules['google.auth'] = None\n"
        "from layertap.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    words = ["tpu", "create", *TWO_ZONES.split()]
    done = commands.run(["-c", program, *words, "--dry_run"], tmp_path)
    assert (done.returncode, done.stdout.splitlines()) == (0, CREATES), done.stderr
    assert COST in done.stderr
    assert " -m pip install " in done.stderr
    done = commands.run(["-c", program, *words], tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert "[tpu-ops]" in done.stderr


@pytest.mark.parametrize(
    ("tpu_type", "count"),
    [("v5litepod-8", 8), ("v6e-8", 8), ("v4-8", 4), ("v5p-8", 4), ("v3-8", 4), ("v2-8", 4), ("tpu9", None)],
)
def test_chips_are_counted_from_the_type(tpu_type: str, count: int | None) -> None:
    assert count_chips(tpu_type) == count
