"""The commands through Google's own client, against a Cloud TPU on loopback."""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import commands
import pytest
from fakes.cloud_tpu import FakeCloudTpu
from manage_tpus import ALL, HOME_A, HOME_B, TWO_ZONES, posts

Tpu = Callable[..., int]

SETUP = commands.ROOT / "scripts" / "setup_tpu_worker.sh"


def test_create_makes_a_fleet_and_again_makes_nothing(cloud: FakeCloudTpu, tpu: Tpu) -> None:
    assert tpu(f"create {TWO_ZONES}") == 0
    assert cloud.workers() == ALL
    assert set(cloud.states().values()) == {"READY"}
    node = cloud.nodes["us-central1-b", "tpu-us-central1-b-6"]
    assert node["labels"] == {"layertap-fleet": "tpu", "layertap-worker": "6", "layertap-home": "us-central1-b"}
    assert node["schedulingConfig"] == {"spot": True}
    assert (node["acceleratorType"], node["runtimeVersion"]) == ("v5litepod-8", "v2-alpha-tpuv5-lite")
    assert node["networkConfig"] == {"enableExternalIps": True}
    assert tpu(f"create {TWO_ZONES}") == 0
    assert posts(cloud) == 8


def test_what_is_told_at_the_same_time_stands_on_lines_of_its_own(
    cloud: FakeCloudTpu, tpu: Tpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[str] = []
    monkeypatch.setattr(sys.stderr, "write", written.append)
    assert tpu(f"create {TWO_ZONES}") == 0
    told = [text for text in written if "create tpu-" in text]
    assert len(told) == 8
    assert all(text.endswith("\n") for text in told), "else another thread's text comes in between"


def test_flags_reach_the_machine(cloud: FakeCloudTpu, tpu: Tpu, tmp_path: Path) -> None:
    script = tmp_path / "setup.sh"
    script.write_text("echo ready\n")
    flags = (
        "--tpu_type v4-8 --no-spot --service_account w@x --network n --subnetwork s --no-external_ips --package p.whl"
    )
    assert (
        tpu(
            f"create --zones us-central1-a --name_prefix arc {flags} --startup {script}",
            "--extract_flags=--dataset_path gs://b/stream_{worker}.jsonl",
        )
        == 0
    )
    node = cloud.nodes["us-central1-a", "arc-us-central1-a-0"]
    assert (node["acceleratorType"], node["runtimeVersion"]) == ("v4-8", "tpu-ubuntu2204-base")
    assert "schedulingConfig" not in node
    assert node["serviceAccount"] == {"email": "w@x"}
    assert node["networkConfig"] == {"network": "n", "subnetwork": "s"}
    assert node["metadata"] == {
        "startup-script": "echo ready\n",
        "layertap-package": "p.whl",
        "layertap-extract-flags": "--dataset_path gs://b/stream_{worker}.jsonl",
        "layertap-worker-id": "0",
    }


@pytest.mark.whole
def test_a_stockout_in_the_operations_result_sends_the_worker_to_the_next_zone(cloud: FakeCloudTpu, tpu: Tpu) -> None:
    cloud.stockouts = {"us-central1-a"}
    assert tpu("create --zones us-central1-a,us-central1-b --workers_per_zone 2") == 0
    assert cloud.workers() == {worker: f"tpu-us-central1-b-{worker}" for worker in range(4)}
    assert cloud.nodes["us-central1-b", "tpu-us-central1-b-0"]["labels"]["layertap-home"] == "us-central1-a"
    before = posts(cloud)
    cloud.stockouts = set()
    assert tpu("create --zones us-central1-a,us-central1-b --workers_per_zone 2") == 0
    assert posts(cloud) == before, "a guest counts at home"


@pytest.mark.parametrize("litters", [False, True])
def test_a_stockout_everywhere_is_told_and_leaves_nothing(
    cloud: FakeCloudTpu, tpu: Tpu, capsys: pytest.CaptureFixture[str], litters: bool
) -> None:
    cloud.stockouts, cloud.litters = {"us-central1-a"}, litters
    assert tpu("create --zones us-central1-a --workers_per_zone 2") == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: 2 workers could not be created")
    assert "no more capacity" in error
    assert "--watch" in error
    assert not cloud.nodes


def test_a_quota_is_told_apart_from_a_stockout_and_other_zones_get_theirs(
    cloud: FakeCloudTpu, tpu: Tpu, capsys: pytest.CaptureFixture[str]
) -> None:
    cloud.quotas = {"us-central1-a": 3}
    assert tpu(f"create {TWO_ZONES}") == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert "1 workers could not be created" in error
    assert "may not have more TPUs there" in error
    assert "iam-admin/quotas" in error
    names = cloud.workers().values()
    assert sum("-a-" in name for name in names) == 3
    assert {name for name in names if "-b-" in name} == set(HOME_B)


@pytest.mark.parametrize(
    ("trouble", "flags", "says"),
    [
        ({"denied": True}, "--zones us-central1-a", "roles/tpu.admin"),
        ({}, "--zones us-central9-q", "check their names"),
        ({}, "--zones us-central1-a --tpu_type v5litepod-7", "accelerator-types list"),
        ({}, "--zones us-central1-a --tpu_type tpu9-8", "--runtime_version"),
        ({}, "--zones us-central1-a,us-central1-a", "names a zone twice"),
        ({}, "", "--zones is missing"),
        ({}, "--zones us-central1-a --workers_per_zone 0", "--workers_per_zone must be at least 1"),
        ({}, "--zones us-central1-a --startup /nowhere.sh", "/nowhere.sh"),
        ({}, "--zones us-central1-a --watch --dry_run", "contradict"),
        ({}, "--zones us-central1-a --package p.whl", "--package is read by the startup script"),
        ({}, f"--zones us-central1-a --startup {SETUP} --extract_flags=--dataset_path=x", "needs --package"),
        ({}, f"--zones us-central1-a --startup {SETUP} --package p.whl", "needs --extract_flags"),
    ],
)
def test_what_only_the_user_can_mend_is_explained(
    cloud: FakeCloudTpu, tpu: Tpu, capsys: pytest.CaptureFixture[str], trouble: dict[str, bool], flags: str, says: str
) -> None:
    for name, value in trouble.items():
        setattr(cloud, name, value)
    assert tpu(f"create {flags}") == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ")
    assert says in error
    assert not cloud.nodes


SHARED = "--dataset_path t.jsonl --machine_id {worker} --total_machines "


@pytest.mark.parametrize("command", ["create", "recreate-preempted"])
@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ("--dataset_path t.jsonl --laeyrs 3", "are not flags of `layertap extract`"),
        ("--help", "are not flags of `layertap extract`"),
        ("--dataset_path 't.jsonl", "No closing quotation"),
        ("--machine_id {worker} --total_machines 8", "give --dataset_path, or --dataset_name"),
        ("--dataset_path t.jsonl --gcs_bucket b --upload_to_gcs", "every worker would do the same work"),
        ("--dataset_path t.jsonl --output_dir out_{worker}", "every worker would do the same work"),
        ("--dataset_path t_{worker}.jsonl --output_dir gs://b/x", "every worker would write to gs://b/x."),
        (f"{SHARED} 4", "for worker 7: --machine_id 7 is not one of 4 machines"),
    ],
)
def test_flags_that_no_worker_could_run_with_are_refused_before_anything_is_made(
    cloud: FakeCloudTpu, tpu: Tpu, capsys: pytest.CaptureFixture[str], command: str, flags: str, says: str
) -> None:
    assert tpu(f"{command} {TWO_ZONES} --startup {SETUP} --package p.whl", f"--extract_flags={flags}") == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: --extract_flags")
    assert says in error
    assert not cloud.log


@pytest.mark.parametrize(
    ("fleet", "flags"),
    [
        (TWO_ZONES, f"{SHARED} 8"),
        (TWO_ZONES, "--dataset_path gs://b/stream_{worker}.jsonl"),
        (TWO_ZONES, "--use_sharded_dataset --sharded_dataset_dir gs://b/shards"),
        ("--zones us-central1-a", "--dataset_path t.jsonl"),
    ],
)
def test_flags_that_share_the_work_are_taken(tpu: Tpu, fleet: str, flags: str) -> None:
    assert tpu(f"create {fleet} --dry-run --startup {SETUP} --package p.whl", f"--extract_flags={flags}") == 0


def test_an_outage_ends_with_a_message(cloud: FakeCloudTpu, tpu: Tpu, capsys: pytest.CaptureFixture[str]) -> None:
    cloud.outage = True
    assert tpu("status") == 1
    assert "no answer from Cloud TPU" in capsys.readouterr().err


def test_an_incomplete_list_is_no_ground_to_act_on(
    cloud: FakeCloudTpu, tpu: Tpu, capsys: pytest.CaptureFixture[str]
) -> None:
    cloud.unreachable = {"europe-west4-a"}
    assert tpu("create --zones us-central1-a") == 1
    assert "europe-west4-a" in capsys.readouterr().err
    assert posts(cloud) == 0


def test_foreign_tpus_are_left_alone(cloud: FakeCloudTpu, tpu: Tpu, capsys: pytest.CaptureFixture[str]) -> None:
    cloud.add_node("us-central1-a", "tpu-us-central1-a-9", "PREEMPTED")
    cloud.add_node("us-central1-a", "tpu-us-central1-a-1", "PREEMPTED", labels={"layertap-fleet": "tpu2"})
    assert tpu("create --zones us-central1-a --workers_per_zone 3") == 2
    assert "tpu-us-central1-a-1" in capsys.readouterr().err.splitlines()[-1]
    assert set(cloud.workers()) == {0, 2}
    assert tpu("delete --yes") == 0
    assert cloud.states() == {"tpu-us-central1-a-9": "PREEMPTED", "tpu-us-central1-a-1": "PREEMPTED"}


def test_delete_asks_and_shows_what(cloud: FakeCloudTpu, tpu: Tpu, capsys: pytest.CaptureFixture[str]) -> None:
    assert tpu(f"create {TWO_ZONES}") == 0
    assert tpu("delete") == 2
    errors = capsys.readouterr().err
    assert "--yes" in errors
    assert "tpu-us-central1-b-7" in errors
    assert len(cloud.nodes) == 8
    assert tpu("delete --zones us-central1-b --yes") == 0
    assert set(cloud.states()) == set(HOME_A)


@pytest.mark.parametrize(("answer", "status", "left"), [("y", 0, 0), ("n", 2, 1), ("", 2, 1)])
def test_delete_listens_to_the_answer(
    cloud: FakeCloudTpu, tpu: Tpu, monkeypatch: pytest.MonkeyPatch, answer: str, status: int, left: int
) -> None:
    assert tpu("create --zones us-central1-a") == 0
    person, terminal = os.openpty()
    os.write(person, f"{answer}\n".encode())
    with os.fdopen(person), os.fdopen(terminal) as stdin:
        monkeypatch.setattr("sys.stdin", stdin)
        assert tpu("delete") == status
    assert len(cloud.nodes) == left


def test_delete_takes_what_is_still_being_made(cloud: FakeCloudTpu, tpu: Tpu) -> None:
    assert tpu("create --zones us-central1-a --workers_per_zone 2") == 0
    cloud.set_state("tpu-us-central1-a-1", "CREATING")
    assert tpu("delete --yes") == 0
    assert not cloud.nodes


def test_dry_run_tells_and_does_nothing(cloud: FakeCloudTpu, tpu: Tpu, capsys: pytest.CaptureFixture[str]) -> None:
    assert tpu(f"create {TWO_ZONES} --dry-run") == 0
    assert capsys.readouterr().out.splitlines() == [f"create {name} for worker {w}" for w, name in ALL.items()]
    assert tpu("create --zones us-central1-a") == 0
    assert tpu("delete --dry-run") == 0
    assert "delete tpu-us-central1-a-0 (READY), worker 0: asked for" in capsys.readouterr().out
    assert len(cloud.nodes) == 1


def test_the_queue_is_joined_and_followed(cloud: FakeCloudTpu, tpu: Tpu, capsys: pytest.CaptureFixture[str]) -> None:
    cloud.queue_moves = False
    assert tpu("create --zones us-central1-a --workers_per_zone 2 --queued") == 0
    assert "us-central1-a  0        2" in capsys.readouterr().out
    request = cloud.requests["us-central1-a", "tpu-us-central1-a-1"]
    assert "spot" in request
    (spec,) = request["tpu"]["nodeSpec"]
    assert spec["node"]["labels"]["layertap-worker"] == "1"
    cloud.queue_moves = True
    assert [tpu("status") for _ in range(3)] == [0, 0, 0]
    assert cloud.workers() == {0: "tpu-us-central1-a-0", 1: "tpu-us-central1-a-1"}


def test_list_and_status_speak_json(cloud: FakeCloudTpu, tpu: Tpu, capsys: pytest.CaptureFixture[str]) -> None:
    assert tpu("create --zones us-central1-a --workers_per_zone 2 --json") == 0
    created = json.loads(capsys.readouterr().out)
    assert tpu("list --json") == 0
    listed = json.loads(capsys.readouterr().out)
    assert listed["members"] == created["members"]
    assert [member["worker"] for member in listed["members"]] == [0, 1]
    assert listed["counts"] == {"running": 2}
    assert tpu("status --zones us-central1-b --json") == 0
    assert json.loads(capsys.readouterr().out)["members"] == []


def test_without_a_project_the_message_names_the_flag(
    cloud: FakeCloudTpu, tpu: Tpu, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("GOOGLE_CLOUD_PROJECT")
    assert tpu("status") == 2
    assert "--project" in capsys.readouterr().err
