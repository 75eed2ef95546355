"""Lost TPUs come back: the same workers, made as before."""

from collections.abc import Callable
from pathlib import Path

import pytest
from fakes.cloud_tpu import FakeCloudTpu
from manage_tpus import ALL, HOME_A, HOME_B, TWO_ZONES, posts

Tpu = Callable[..., int]


@pytest.mark.whole
def test_half_a_fleet_lost_comes_back_with_the_same_ids_made_as_it_was(
    cloud: FakeCloudTpu, tpu: Tpu, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "setup.sh").write_text("echo ready\n")
    assert tpu(f"create {TWO_ZONES} --tpu_type v4-8 --package p.whl --startup {tmp_path}/setup.sh") == 0
    for name, state in zip(
        [*HOME_A[:2], *HOME_B[2:]], ["PREEMPTED", "TERMINATED", "PREEMPTED", "UNKNOWN"], strict=True
    ):
        cloud.set_state(name, state)
    capsys.readouterr()
    assert tpu(f"status {TWO_ZONES}") == 0
    assert capsys.readouterr().out.splitlines() == [
        "zone           running  queued  coming  lost  leaving  stopped  missing",
        "us-central1-a  2        0       0       2     0        0        2",
        "us-central1-b  2        0       0       2     0        0        2",
    ]
    assert tpu("recreate-preempted --zones us-central1-a --workers_per_zone 4") == 0
    assert cloud.states() | dict.fromkeys(HOME_B, "READY") == dict.fromkeys(ALL.values(), "READY")
    assert tpu(f"recreate-preempted {TWO_ZONES}") == 0
    assert cloud.workers() == ALL
    assert {node["acceleratorType"] for node in cloud.nodes.values()} == {"v4-8"}
    assert {node["metadata"]["layertap-package"] for node in cloud.nodes.values()} == {"p.whl"}
    assert tpu(f"recreate-preempted {TWO_ZONES}") == 0


@pytest.mark.whole
def test_a_fleet_that_is_lost_as_a_whole_is_copied_though_nothing_of_it_stands_any_more(
    cloud: FakeCloudTpu, tpu: Tpu
) -> None:
    assert tpu("create --zones us-central1-a --workers_per_zone 2 --tpu_type v4-8 --no-spot --network n") == 0
    for name in HOME_A[:2]:
        cloud.set_state(name, "TERMINATED")
    cloud.stockouts = {"us-central1-a"}
    assert tpu("recreate-preempted --zones us-central1-a,us-central1-b --workers_per_zone 2") == 0
    assert cloud.workers() == {worker: f"tpu-us-central1-b-{worker}" for worker in range(4)}
    for node in cloud.nodes.values():
        assert (node["acceleratorType"], node["networkConfig"]["network"]) == ("v4-8", "n")
        assert "schedulingConfig" not in node


def test_a_worker_is_copied_from_its_own_tpu_else_from_one_of_its_home(cloud: FakeCloudTpu, tpu: Tpu) -> None:
    assert tpu("create --zones us-central1-a --workers_per_zone 1") == 0
    assert tpu("create --zones us-central1-b --workers_per_zone 1 --tpu_type v4-8") == 0
    cloud.set_state("tpu-us-central1-b-1", "PREEMPTED")
    assert tpu("recreate-preempted --zones us-central1-a,us-central1-b --workers_per_zone 2") == 0
    kinds = {name: node["acceleratorType"] for (_, name), node in cloud.nodes.items()}
    assert kinds["tpu-us-central1-b-1"] == kinds["tpu-us-central1-b-3"] == "v4-8"
    assert kinds["tpu-us-central1-a-0"] == kinds["tpu-us-central1-a-2"] == "v5litepod-8"


def test_recreating_what_never_was_is_refused(
    cloud: FakeCloudTpu, tpu: Tpu, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tpu("recreate-preempted --zones us-central1-a") == 2
    assert "create one with `create`" in capsys.readouterr().err


@pytest.mark.whole
def test_suspended_and_failed_requests_are_replaced(cloud: FakeCloudTpu, tpu: Tpu) -> None:
    assert tpu("create --zones us-central1-a --workers_per_zone 3 --queued") == 0
    assert [tpu("status") for _ in range(3)] == [0, 0, 0]
    cloud.suspend("tpu-us-central1-a-1")
    cloud.requests["us-central1-a", "tpu-us-central1-a-2"]["state"] = {
        "state": "FAILED",
        "failedData": {"error": {"code": 8, "message": "no capacity"}},
    }
    before = posts(cloud)
    assert tpu("recreate-preempted --zones us-central1-a --workers_per_zone 3") == 0
    assert posts(cloud) == before + 2
    assert [tpu("status") for _ in range(3)] == [0, 0, 0]
    assert sorted(cloud.workers()) == [0, 1, 2]
    assert all("spot" in request for request in cloud.requests.values())
    assert tpu("delete --yes") == 0
    assert not cloud.requests
    assert not cloud.nodes
