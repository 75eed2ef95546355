"""Real processes that upload to a bucket: killed, told to stop, and started twice by mistake."""

import json
import signal
from pathlib import Path

import pytest
import shards
from fakes.gcs import FakeGcs
from fakes.gcs_faults import wait_for
from kills import CHECKPOINT, MANIFEST, Machine, require_same
from soak import soak


@pytest.mark.slow
def test_half_a_dozen_kills_of_every_kind_change_no_byte(tmp_path: Path) -> None:
    tally = soak(tmp_path, kills=6, seed=3, say=print, tasks=12)
    print(tally)
    assert tally["runs that ended with the same bytes"] >= 1


@pytest.mark.slow
def test_killed_between_every_two_steps_of_the_commit_in_the_bucket(new_machine, whole: Machine, gcs: FakeGcs) -> None:
    machine = new_machine("killed", delete=True)
    steps = [
        (kind, name)
        for name in ("residual/shard_0002.pkl.gz", "statistics/shard_0003.safetensors", MANIFEST, CHECKPOINT)
        for kind in ("call", "call_after")
    ]
    for number, (kind, name) in enumerate(steps):
        gcs.faults.plan(kind, "insert", name, action=machine.kill)
        machine.start().communicate(timeout=280)
        assert machine.process.returncode == -signal.SIGKILL, (kind, name)
        if number % 3 == 2:
            machine.wipe()
    machine.run_to_the_end()
    assert {name: data for name, data in machine.bucket_contents().items() if "shard_" in name} == {
        name: data for name, data in whole.bucket_contents().items() if "shard_" in name
    }
    assert json.loads(machine.bucket_contents()[MANIFEST])["complete"]


@pytest.mark.slow
def test_told_to_stop_a_run_uploads_what_it_has_committed(new_machine, whole: Machine, gcs: FakeGcs) -> None:
    machine = new_machine("stopped")
    gcs.faults.plan("slow", "insert", ".gz", times=10, seconds=0.2)
    process = machine.start()
    wait_for(lambda: process.poll() is not None or len(shards_here(machine)) >= 3)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "run the same command to resume" in errors
    assert len(shards_here(machine)) >= 3
    assert machine.bucket_contents()[MANIFEST] == (machine.output / MANIFEST).read_bytes()
    assert "owner.json" not in machine.bucket_contents()
    machine.wipe()
    machine.run_to_the_end()
    require_same(machine, whole)


@pytest.mark.slow
def test_told_to_stop_a_run_is_gone_though_the_bucket_does_not_answer(new_machine, whole, gcs: FakeGcs) -> None:
    machine = new_machine("hanging")
    gcs.faults.plan("slow", "insert", ".gz", times=100, seconds=600)
    process = machine.start()
    wait_for(lambda: process.poll() is not None or len(shards_here(machine)) >= 2)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 130, errors
    assert "time is up" in errors
    gcs.faults.planned.clear()
    machine.run_to_the_end()
    require_same(machine, whole)


@pytest.mark.slow
def test_of_two_workers_with_one_id_the_second_is_refused(new_machine, whole: Machine, gcs: FakeGcs) -> None:
    first, second = new_machine("first"), new_machine("second")
    gcs.faults.plan("slow", "insert", ".gz", times=1000, seconds=2.0)
    process = first.start()
    wait_for(lambda: "owner.json" in first.bucket_contents())
    refused = second.start()
    _, errors = refused.communicate(timeout=60)
    assert refused.returncode == 1
    assert f"process {process.pid} on " in errors
    assert "--worker_id" in errors
    gcs.faults.planned.clear()
    output, errors = process.communicate(timeout=200)
    assert process.returncode == 0, output + errors
    require_same(first, whole)


@pytest.mark.slow
def test_a_worker_that_slept_while_another_took_over_stops_when_it_wakes(new_machine, whole, gcs: FakeGcs) -> None:
    sleeper, heir = new_machine("sleeper"), new_machine("heir")
    sleeping = sleeper.start()
    wait_for(lambda: len(shards.described(sleeper.bucket_contents())["shards"]) >= 2)
    sleeping.send_signal(signal.SIGSTOP)
    gcs.state.skew += 3600  # the hour for which it slept
    heir.run_to_the_end()
    after = heir.bucket_contents()
    sleeping.send_signal(signal.SIGCONT)
    _, errors = sleeping.communicate(timeout=200)
    assert sleeping.returncode == 1, errors
    assert "another process has" in errors
    assert heir.bucket_contents() == after
    heir.wiped = True  # it began with the sleeper's shards in the bucket alone
    require_same(heir, whole)


def shards_here(machine: Machine) -> list[object]:
    return shards.manifest(machine.output)["shards"]
