"""Real processes that write only to a bucket: killed, told to stop, and started twice."""

import json
import random
import signal
import time
from collections import Counter

import pytest
import shards
from clouds import BUCKET
from fakes.gcs import FakeGcs
from fakes.gcs_faults import wait_for
from kills import CHECKPOINT, MANIFEST, Machine, NewMachine, kill_until_done, require_same


@pytest.fixture
def scenario() -> dict[str, object]:
    """The scenario where output goes only to the bucket."""
    return {"direct": True}


def there(machine: Machine) -> list[object]:
    return shards.described(machine.bucket_contents())["shards"]


@pytest.mark.whole
def test_killed_between_upload_and_commit_a_run_ends_with_the_same_bytes(new_machine, whole, gcs: FakeGcs) -> None:
    machine = new_machine("killed")
    gcs.faults.plan("call", "insert", "part_0001.jsonl", action=machine.kill)
    machine.start().communicate(timeout=280)
    assert machine.process.returncode == -signal.SIGKILL
    found = machine.bucket_contents()
    assert there(machine) == []
    assert any("shard_" in name for name in found)
    assert "owner.json" in found
    machine.run_to_the_end()
    require_same(machine, whole)


@pytest.mark.slow
def test_killed_between_every_two_steps_of_the_commit(new_machine, whole: Machine, gcs: FakeGcs) -> None:
    machine = new_machine("killed")
    for kind, name in (
        ("call_after", "residual/shard_0002.pkl.gz"),
        ("call_after", "statistics/shard_0003.safetensors"),
        ("call", MANIFEST),
        ("call_after", MANIFEST),
        ("call_after", CHECKPOINT),
    ):  # what is before an object is after the one before it
        gcs.faults.plan(kind, "insert", name, action=machine.kill)
        machine.start().communicate(timeout=280)
        assert machine.process.returncode == -signal.SIGKILL, (kind, name)
    machine.run_to_the_end()
    require_same(machine, whole)


def kill_at_random(new_machine: NewMachine, gcs: FakeGcs, form: str, storm: float, kills: int) -> None:
    """A run that was killed this often ends with the same bytes as an undisturbed one."""
    with FakeGcs(BUCKET) as server:
        undisturbed = new_machine("undisturbed", server, form=form)
        undisturbed.run_to_the_end()
    gcs.faults.storm = storm
    machine, tally = new_machine("killed", form=form), Counter[str]()
    assert kill_until_done(machine, undisturbed, kills, random.Random(11), tally) >= 1
    print(tally)


@pytest.mark.slow
@pytest.mark.parametrize(("form", "storm"), [("pickle", 0.05), ("safetensors", 0.0)])
def test_three_kills_at_random_change_no_byte(new_machine: NewMachine, gcs: FakeGcs, form: str, storm: float) -> None:
    kill_at_random(new_machine, gcs, form, storm, kills=3)


@pytest.mark.proof
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("storm", [0.0, 0.05])
@pytest.mark.parametrize("form", ["pickle", "safetensors"])
def test_ten_kills_at_random_change_no_byte(new_machine: NewMachine, gcs: FakeGcs, form: str, storm: float) -> None:
    kill_at_random(new_machine, gcs, form, storm, kills=10)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.slow
def test_told_to_stop_a_run_uploads_what_it_has_computed(new_machine, whole, gcs: FakeGcs, number) -> None:
    machine = new_machine("stopped")
    gcs.faults.plan("slow", "insert", ".gz", times=10, seconds=0.2)
    process = machine.start()
    wait_for(lambda: process.poll() is not None or len(there(machine)) >= 2)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "uploading what is computed, for 30 s at most" in errors
    assert "what was computed is there" in errors
    found = machine.bucket_contents()
    assert len(there(machine)) >= 2
    assert json.loads(found[CHECKPOINT])["shards"] == len(there(machine))
    assert {name for name in found if "shard_" in name} == {
        file["path"] for shard in there(machine) for file in shard["files"]
    }, "nothing was left behind"
    assert "owner.json" not in found
    machine.run_to_the_end()
    require_same(machine, whole)


@pytest.mark.slow
def test_interrupted_a_run_gives_up_though_the_bucket_does_not_answer(new_machine, whole, gcs: FakeGcs) -> None:
    machine = new_machine("hanging")
    gcs.faults.plan("slow", "insert", ".gz", times=100, seconds=600)
    process = machine.start()
    wait_for(lambda: process.poll() is not None or gcs.faults.planned[0].times < 100)
    begun = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    assert "what had not arrived was given up" in errors
    print(f"gone after {time.monotonic() - begun:.0f} s")
    gcs.faults.planned.clear()
    machine.run_to_the_end()
    require_same(machine, whole)


@pytest.mark.slow
def test_a_worker_that_slept_while_another_took_over_stops_when_it_wakes(new_machine, whole, gcs: FakeGcs) -> None:
    sleeper, heir = new_machine("sleeper"), new_machine("heir")
    sleeping = sleeper.start()
    wait_for(lambda: len(there(sleeper)) >= 2)
    sleeping.send_signal(signal.SIGSTOP)
    gcs.state.skew += 3600  # the hour for which it slept
    heir.run_to_the_end()
    after = heir.bucket_contents()
    sleeping.send_signal(signal.SIGCONT)
    _, errors = sleeping.communicate(timeout=200)
    assert sleeping.returncode == 1, errors
    assert "another process has" in errors
    assert heir.bucket_contents() == after
    require_same(heir, whole)
