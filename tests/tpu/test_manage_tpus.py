"""scripts/manage_tpus.sh: the printed commands, --watch, and Ctrl-C at bad moments.

What only Ctrl-C or two commands beside each other show needs processes. `make test` runs one test
of each such kind.
"""

import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import commands
import pytest
from fakes.cloud_tpu import FakeCloudTpu
from manage_tpus import Process, interrupt, wait_for
from manage_tpus import running as running_script

Tpu = Callable[..., int]
Running = Callable[[FakeCloudTpu, str], AbstractContextManager[Process]]


def sent(cloud: FakeCloudTpu, method: str) -> int:
    with cloud.lock:
        return sum(line.startswith(method) for line in cloud.log)


@pytest.mark.whole
def test_watch_keeps_the_fleet_at_strength(cloud: FakeCloudTpu) -> None:
    with running_script(cloud, "create --zones us-central1-a,us-central1-b --workers_per_zone 2 --watch") as process:
        wait_for(lambda: list(cloud.states().values()) == ["READY"] * 4, process)
        cloud.set_state("tpu-us-central1-b-3", "PREEMPTED")
        wait_for(lambda: cloud.states().get("tpu-us-central1-b-3") == "READY", process)
        cloud.stockouts = {"us-central1-a"}
        cloud.set_state("tpu-us-central1-a-0", "PREEMPTED")
        wait_for(lambda: cloud.states().get("tpu-us-central1-b-0") == "READY", process)
        cloud.outage = True
        asked = len(cloud.log)
        wait_for(lambda: len(cloud.log) > asked + 4, process)
        cloud.outage = False
        cloud.stockouts = set()
        cloud.set_state("tpu-us-central1-b-0", "TERMINATED")
        wait_for(lambda: cloud.states().get("tpu-us-central1-a-0") == "READY", process)
        log = interrupt(process)
    assert cloud.workers() == {w: f"tpu-us-central1-{z}-{w}" for w, z in enumerate("aabb")}
    for line in (
        "tpu-us-central1-b-3, worker 3: PREEMPTED",
        "create tpu-us-central1-b-3 for worker 3, after deleting tpu-us-central1-b-3 (PREEMPTED)",
        "creating tpu-us-central1-a-0 in us-central1-a: no free TPU of this type there now",
        "create tpu-us-central1-b-0 for worker 0, away from home us-central1-a",
        "create tpu-us-central1-a-0 for worker 0, after deleting tpu-us-central1-b-0 (TERMINATED)",
    ):
        assert line in log


@pytest.mark.whole
@pytest.mark.parametrize(
    ("trouble", "calm"),
    [({"denied": True}, {"denied": False}), ({"forgotten": {"us-central1-a"}}, {"forgotten": set()})],
    ids=["a login that has run out", "a 404"],
)
def test_watch_outlasts_what_passes(
    cloud: FakeCloudTpu, running: Running, tpu: Tpu, trouble: dict[str, object], calm: dict[str, object]
) -> None:
    assert tpu("create --zones us-central1-a") == 0
    with running(cloud, "recreate-preempted --zones us-central1-a --watch") as process:
        looks = len(cloud.log)
        wait_for(lambda: len(cloud.log) > looks + 20, process)
        vars(cloud).update(trouble)
        cloud.set_state("tpu-us-central1-a-0", "PREEMPTED")
        asked = len(cloud.log)
        wait_for(lambda: len(cloud.log) > asked + 15, process)
        vars(cloud).update(calm)
        wait_for(lambda: cloud.states().get("tpu-us-central1-a-0") == "READY", process)
        assert "looking again in 0.05 s" in interrupt(process)


def test_watch_leaves_a_zone_alone_that_does_not_have_what_others_have(cloud: FakeCloudTpu, running: Running) -> None:
    cloud.refusing = {"us-central1-b"}
    with running(cloud, "create --zones us-central1-a,us-central1-b --watch") as process:
        wait_for(lambda: sorted(cloud.workers()) == [0, 1], process)
        assert "Google does not find something by its name" in interrupt(process)
    assert set(cloud.workers().values()) == {"tpu-us-central1-a-0", "tpu-us-central1-a-1"}


@pytest.mark.parametrize("trouble", ["denied", "refusing", "forgotten"])
def test_watch_ends_where_nothing_ever_worked(cloud: FakeCloudTpu, running: Running, trouble: str) -> None:
    setattr(cloud, trouble, {"us-central1-a"})
    with running(cloud, "create --zones us-central1-a --watch") as process:
        process.communicate(timeout=60)
        assert process.returncode == 2


def test_watch_outlasts_the_loss_of_the_whole_fleet(cloud: FakeCloudTpu, running: Running, tpu: Tpu) -> None:
    assert tpu("create --zones us-central1-a --workers_per_zone 2 --tpu_type v4-8") == 0
    made = sent(cloud, "POST")
    cloud.stockouts = {"us-central1-a"}
    with running(cloud, "recreate-preempted --zones us-central1-a --workers_per_zone 2 --watch") as process:
        for name in cloud.workers().values():
            cloud.set_state(name, "PREEMPTED")
        wait_for(lambda: sent(cloud, "POST") >= made + 4, process)
        cloud.stockouts = set()
        wait_for(lambda: list(cloud.states().values()) == ["READY"] * 2, process)
        interrupt(process)
    assert sorted(cloud.workers()) == [0, 1]
    assert {node["acceleratorType"] for node in cloud.nodes.values()} == {"v4-8"}


@pytest.mark.whole
def test_ctrl_c_in_mid_create_and_the_next_call_goes_on(cloud: FakeCloudTpu) -> None:
    command = "create --zones us-central1-a,us-central1-b --workers_per_zone 2"
    cloud.stuck = True
    with running_script(cloud, command) as process:
        wait_for(lambda: sent(cloud, "POST") == 4, process)
        assert "Cloud TPU continues what it has accepted" in interrupt(process)
    assert list(cloud.states().values()) == ["CREATING"] * 4
    cloud.stuck = False
    with running_script(cloud, command) as process:
        looks = len(cloud.log)
        wait_for(lambda: len(cloud.log) > looks + 20, process)
        cloud.finish_operations()
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
    assert sorted(cloud.workers()) == [0, 1, 2, 3]
    assert sent(cloud, "POST") == 4, "what was begun is waited for, not begun again"


@pytest.mark.whole
def test_a_create_makes_nothing_again_while_delete_takes_the_fleet_down(cloud: FakeCloudTpu) -> None:
    command = "create --zones us-central1-a,us-central1-b --workers_per_zone 1"
    cloud.stuck = True
    with running_script(cloud, command) as create:
        looks = sent(cloud, "GET")
        wait_for(lambda: sent(cloud, "POST") == 2 and sent(cloud, "GET") > looks + 12, create)
        with running_script(cloud, "delete --yes") as delete:
            wait_for(lambda: sent(cloud, "DELETE") == 2, delete)
            cloud.stuck = False
            cloud.finish_operations()
            assert delete.communicate(timeout=60)[0] == "nothing of the fleet 'tpu' is left in any zone\n"
        output, errors = create.communicate(timeout=60)
    assert not cloud.nodes
    assert sent(cloud, "POST") == 2
    assert create.returncode == 1, errors
    assert "2 missing workers were not created, because somebody is deleting this fleet: worker 0, 1" in errors
    assert output.splitlines()[1].split() == ["us-central1-a", *"0000001"]


def test_watch_replaces_what_is_preempted_while_it_is_made(cloud: FakeCloudTpu, running: Running) -> None:
    cloud.stuck = True
    with running(cloud, "create --zones us-central1-a --watch") as process:
        wait_for(lambda: sent(cloud, "POST") == 1, process)
        cloud.set_state("tpu-us-central1-a-0", "PREEMPTED")
        cloud.finish_operations()
        cloud.stuck = False
        wait_for(lambda: cloud.states().get("tpu-us-central1-a-0") == "READY", process)
        interrupt(process)


@pytest.mark.whole
def test_ctrl_c_between_deleting_and_creating(cloud: FakeCloudTpu, tpu: Tpu) -> None:
    assert tpu("create --zones us-central1-a,us-central1-b --workers_per_zone 2") == 0
    cloud.set_state("tpu-us-central1-b-3", "PREEMPTED")
    cloud.stuck = True
    with running_script(cloud, "recreate-preempted --zones us-central1-b --workers_per_zone 2") as process:
        wait_for(lambda: sent(cloud, "DELETE") == 1, process)
        interrupt(process)
    cloud.stuck = False
    with running_script(cloud, "recreate-preempted --zones us-central1-b --workers_per_zone 2") as process:
        looks = len(cloud.log)
        wait_for(lambda: len(cloud.log) > looks + 12, process)
        cloud.finish_operations()
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
    assert cloud.workers() == {w: f"tpu-us-central1-{z}-{w}" for w, z in enumerate("aabb")}


def test_the_scripts_pass_shellcheck() -> None:
    scripts = sorted((commands.ROOT / "scripts").glob("*.sh"))
    shellcheck = Path(sys.executable).with_name("shellcheck")  # installed beside this Python, which need not be on PATH
    done = subprocess.run([shellcheck, *scripts], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout
