"""Who has a shard, and who may commit it, with races, stopped holders, lost replies and wrong
clocks.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import commands
import pytest
from claiming import claim
from fakes.gcs import FakeGcs
from fakes.gcs_faults import wait_for

from layertap.errors import DamageError, LayertapError, LeaseLostError, StorageError
from layertap.fleet.claims import (
    Heartbeat,
    Lease,
    claim_name,
    done_name,
    has_run_out,
    read_claim,
    settle,
    take,
    take_over,
)
from layertap.objects import open_store
from layertap.objects.base import ObjectStore, StoredBytes
from layertap.objects.retry import Retry

SHARD = "shard_00000"
RACERS, RACES = 8, 50

_PREAMBLE = """
import sys, time
sys.path.insert(0, sys.argv[1])
from claiming import claim
from layertap.errors import LeaseLostError
from layertap.fleet.claims import Heartbeat, take
from layertap.objects import open_store
store, worker = open_store(sys.argv[2]), int(sys.argv[3])
"""


@contextmanager
def process(program: str, url: str, worker: int) -> Iterator[subprocess.Popen[str]]:
    """A separate worker that the test controls line by line."""
    started = subprocess.Popen(
        [sys.executable, "-c", _PREAMBLE + program, str(commands.ROOT / "tests" / "support"), url, str(worker)],
        env={**os.environ, "PYTHONPATH": str(commands.ROOT / "src")},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        bufsize=1,
    )
    try:
        yield started
    finally:
        started.kill()
        started.communicate()


def held(store: ObjectStore, **more: object) -> Lease:
    lease = take(store, SHARD, claim(0, **more))
    assert lease is not None
    return lease


def stolen(store: ObjectStore, worker: int) -> Lease:
    found = read_claim(store, SHARD)
    assert found is not None
    lease = take_over(store, SHARD, found[0], claim(worker))
    assert lease is not None
    return lease


@pytest.fixture
def impatient(gcs: FakeGcs) -> Iterator[ObjectStore]:
    """A store in a bucket. It never tries a request again."""
    with closing(open_store("gs://bucket/dataset", Retry(0.0))) as opened:
        yield opened


@contextmanager
def interrupted(store: ObjectStore, moment: str) -> Iterator[None]:
    """Raise Ctrl-C when a write of the claim took effect, before or after the holder knows it."""

    def replace_if(*arguments: Any) -> None:
        assert replace(*arguments) is not None
        raise KeyboardInterrupt

    replace = store.replace_if
    with pytest.MonkeyPatch.context() as patch:
        if moment == "before the answer":
            patch.setattr(store, "replace_if", replace_if)
        else:
            patch.setattr("layertap.fleet.claims.settle", Mock(side_effect=KeyboardInterrupt))
        yield


def done(store: ObjectStore) -> object:
    found = store.read(done_name(SHARD))
    return None if found is None else json.loads(found.data)


# -- one holder ------------------------------------------------------------------------------------


@pytest.mark.whole
def test_of_eight_racing_processes_one_wins_fifty_times(place: str) -> None:
    program = """
for line in sys.stdin:
    lease = take(store, line.strip(), claim(worker))
    print("won" if lease else "lost", flush=True)
"""
    with ExitStack() as stack:
        racers = [stack.enter_context(process(program, place, worker)) for worker in range(RACERS)]
        winners = []
        for race in range(RACES):
            for racer in racers:
                racer.stdin.write(f"shard_{race:05d}\n")
            answers = [racer.stdout.readline().strip() for racer in racers]
            assert sorted(answers) == ["lost"] * (RACERS - 1) + ["won"]
            winners.append(answers.index("won"))
    assert len(set(winners)) > 1  # it was a race


def test_a_shard_that_was_done_meanwhile_is_not_taken(store: ObjectStore) -> None:
    held(store).commit({"by": 0})
    assert take(store, SHARD, claim(1)) is None
    assert read_claim(store, SHARD) is None


def test_a_released_shard_is_free_and_another_s_is_not_released(store: ObjectStore) -> None:
    lease = held(store)
    other = stolen(store, 1)
    lease.release()
    assert read_claim(store, SHARD)[1].worker == 1
    other.release()
    assert take(store, SHARD, claim(2)) is not None


def test_a_claim_that_is_as_it_was_is_released_without_reading_it(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    lease = held(store)
    with monkeypatch.context() as patch:
        patch.setattr(store, "read", Mock(side_effect=AssertionError))
        lease.release()
    assert read_claim(store, SHARD) is None


def test_a_claim_that_changed_is_not_taken_over(store: ObjectStore) -> None:
    lease = held(store)
    seen, _ = read_claim(store, SHARD)
    lease.beat({})
    assert take_over(store, SHARD, seen, claim(1)) is None


# -- who lost a lease does not commit --------------------------------------------------------------


def test_who_was_robbed_notices_and_cannot_commit(store: ObjectStore) -> None:
    lease = held(store)
    thief = stolen(store, 1)
    lost = "the lease ran out, and another worker has taken it over; what this worker extracted from it does not count"
    for act in (lambda: lease.beat({}), lambda: lease.commit({"by": 0}), lambda: lease.fail("x")):
        with pytest.raises(LeaseLostError, match=f"^dataset shard {SHARD}: {lost}$"):
            act()
    thief.commit({"by": 1})
    with pytest.raises(LeaseLostError):
        lease.commit({"by": 0})
    assert done(store) == {"by": 1}


@pytest.mark.whole
def test_a_process_stopped_past_its_lease_does_not_commit_when_it_wakes(place: str, store: ObjectStore) -> None:
    program = """
import signal
beats = 0
def stop_at_the_third():  # by its own hand, so that it is not in the middle of a write to a folder (docs/fleet.md)
    global beats
    beats += 1
    if beats == 3:
        signal.raise_signal(signal.SIGSTOP)
    return {}
lease = take(store, "shard_00000", claim(worker, seconds=1))
with Heartbeat(lease, stop_at_the_third, print) as heartbeat:
    print("has it", flush=True)
    sys.stdin.readline()
try:
    lease.commit({"by": worker})
    print("committed", flush=True)
except LeaseLostError:
    print("lost it", flush=True)
"""
    with process(program, place, 0) as worker:
        assert worker.stdout.readline() == "has it\n"
        assert os.waitid(os.P_PID, worker.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT).si_code == os.CLD_STOPPED
        assert read_claim(store, SHARD)[1].beats == 2
        wait_for(lambda: has_run_out(store, *read_claim(store, SHARD)))
        stolen(store, 1).commit({"by": 1})
        worker.send_signal(signal.SIGCONT)
        worker.stdin.write("\n")
        assert worker.stdout.readline() == "lost it\n"
    assert done(store) == {"by": 1}
    assert read_claim(store, SHARD) is None


def test_a_holder_that_died_after_its_commit_has_committed(store: ObjectStore) -> None:
    lease = held(store)
    with interrupted(store, "after the answer"), pytest.raises(KeyboardInterrupt):
        lease.commit({"by": 0})
    assert done(store) is None
    seen, committed = read_claim(store, SHARD)
    for _ in range(2):  # two workers may find it at once
        settle(store, SHARD, committed, seen.version)
    assert done(store) == {"by": 0}
    assert read_claim(store, SHARD) is None


@pytest.mark.parametrize("moment", ["before the answer", "after the answer"])
def test_an_interrupted_commit_is_settled_and_not_deleted(store: ObjectStore, moment: str) -> None:
    lease = held(store)
    with interrupted(store, moment), pytest.raises(KeyboardInterrupt):
        lease.commit({"by": 0})
    lease.release()
    assert done(store) == {"by": 0}
    assert read_claim(store, SHARD) is None


def test_a_shard_is_released_although_a_beat_was_interrupted(store: ObjectStore) -> None:
    lease = held(store)
    with interrupted(store, "before the answer"), pytest.raises(KeyboardInterrupt):
        lease.beat({})
    lease.release()
    assert take(store, SHARD, claim(1)) is not None


def test_what_failed_is_not_released(store: ObjectStore) -> None:
    lease = held(store)
    lease.fail("no memory")
    lease.release()
    failed = read_claim(store, SHARD)[1]
    assert (failed.state, failed.error, failed.worker) == ("failed", "no memory", 0)


def test_a_claim_that_is_not_committed_is_not_settled(store: ObjectStore) -> None:
    lease = held(store)
    with pytest.raises(ValueError, match=f"^{SHARD} is not committed$"):
        settle(store, SHARD, lease.claim, "version")
    assert done(store) is None


def test_a_heartbeat_beats_four_times_a_lease(store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    heartbeat = Heartbeat(held(store, seconds=20), dict, lambda error: pytest.fail(str(error)))
    monkeypatch.setattr(heartbeat, "_ended", Mock(wait=lambda seconds: waits.append(seconds) or len(waits) > 3))
    with heartbeat:
        wait_for(lambda: len(waits) > 3)
    assert waits == [5.0] * 4
    assert read_claim(store, SHARD)[1].beats == 3


def test_a_heartbeat_keeps_the_lease_and_tells_of_its_loss(store: ObjectStore) -> None:
    lease = held(store, seconds=0.2)
    with Heartbeat(lease, lambda: {"tokens": 7}, lambda error: pytest.fail(str(error))) as heartbeat:
        wait_for(lambda: read_claim(store, SHARD)[1].beats >= 3)
        assert read_claim(store, SHARD)[1].metrics == {"tokens": 7}
        heartbeat.check()
        wait_for(lambda: take_over(store, SHARD, read_claim(store, SHARD)[0], claim(1)))  # it may beat in between
        heartbeat._thread.join(60)  # it ends once it knows
        with pytest.raises(LeaseLostError):
            heartbeat.check()


# -- the server's clock ----------------------------------------------------------------------------


def test_a_lease_runs_a_second_longer_than_was_said() -> None:
    """A bucket's clock may have only whole seconds."""
    seen = StoredBytes(b"", "version", updated=1000.0)
    for after, run_out in ((60.0, False), (61.0, False), (61.5, True)):
        far_end = Mock(spec=ObjectStore, server_time=lambda after=after: 1000.0 + after)
        assert has_run_out(far_end, seen, claim(0, seconds=60)) == run_out


@pytest.mark.parametrize("skew", [-3600.0, 3600.0])
def test_a_bucket_s_clock_may_differ_by_an_hour(gcs: FakeGcs, bucket: ObjectStore, skew: float) -> None:
    gcs.state.skew = skew
    lease = held(bucket, seconds=60)
    assert not has_run_out(bucket, *read_claim(bucket, SHARD))
    gcs.state.skew = skew + 50
    assert not has_run_out(bucket, *read_claim(bucket, SHARD))
    gcs.state.skew = skew + 63
    assert has_run_out(bucket, *read_claim(bucket, SHARD))
    lease.beat({})
    assert not has_run_out(bucket, *read_claim(bucket, SHARD))


@pytest.mark.parametrize("skew", [-3600.0, 3600.0])
def test_a_worker_s_clock_may_differ_by_an_hour(place: str, store: ObjectStore, skew: float) -> None:
    """A worker with a wrong clock judges another's lease, and others judge its own."""
    program = f"""
from layertap.fleet.claims import has_run_out, read_claim
now, now_ns = time.time, time.time_ns
time.time, time.time_ns = (lambda: now() + {skew}), (lambda: now_ns() + int({skew} * 1e9))
print(has_run_out(store, *read_claim(store, "shard_00000")), flush=True)
lease = take(store, "shard_00001", claim(worker, seconds=60))
lease.beat({{}})
print("beat", flush=True)
sys.stdin.readline()
"""
    held(store, seconds=60)
    with process(program, place, 1) as worker:
        assert worker.stdout.readline() == "False\n"
        assert worker.stdout.readline() == "beat\n"
        assert not has_run_out(store, *read_claim(store, "shard_00001"))


# -- lost replies ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["lose", "vanish"])
def test_lost_replies_change_nothing(gcs: FakeGcs, bucket: ObjectStore, kind: str) -> None:
    claim_object = claim_name(SHARD)
    gcs.faults.plan(kind, "insert", claim_object)
    lease = held(bucket)
    gcs.faults.plan(kind, "insert", claim_object)
    lease.beat({"tokens": 1})
    gcs.faults.plan(kind, "insert", claim_object)
    gcs.faults.plan(kind, "insert", done_name(SHARD))
    gcs.faults.plan(kind, "delete", claim_object)
    lease.commit({"by": 0})
    assert not gcs.faults.planned
    assert done(bucket) == {"by": 0}
    assert read_claim(bucket, SHARD) is None


def test_a_heartbeat_that_gave_up_but_took_effect_is_no_loss(gcs: FakeGcs, impatient: ObjectStore) -> None:
    lease = held(impatient)
    gcs.faults.plan("vanish", "insert", claim_name(SHARD))
    with pytest.raises(LayertapError, match="failed 1 times"):
        lease.beat({})
    lease.beat({})
    lease.commit({"by": 0})
    assert done(impatient) == {"by": 0}


def test_outages_are_reported_and_outlived(gcs: FakeGcs, impatient: ObjectStore) -> None:
    lease = held(impatient, seconds=0.1)
    troubles: list[LayertapError] = []
    gcs.faults.plan("refuse", "insert", claim_name(SHARD), times=2)
    with Heartbeat(lease, dict, troubles.append) as heartbeat:
        wait_for(lambda: len(troubles) == 2 and lease.claim.beats >= 1)
        heartbeat.check()
    assert all("failed 1 times" in str(trouble) for trouble in troubles)


@pytest.mark.parametrize("cause", [StorageError("no network"), KeyboardInterrupt()], ids=["failure", "Ctrl-C"])
def test_a_claim_is_given_back_where_it_ends_before_the_lease_is_known(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch, cause: BaseException
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(store, "stat", Mock(side_effect=cause))
        with pytest.raises(type(cause)):
            take(store, SHARD, claim(0))
    assert read_claim(store, SHARD) is None
    assert take(store, SHARD, claim(1)) is not None


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b'{"lost_by": 3}'])
def test_a_damaged_claim_is_named(store: ObjectStore, content: bytes) -> None:
    store.create(claim_name(SHARD), content)
    with pytest.raises(DamageError, match=r"claims/shard_00000\.json: is not a valid claim .* layertap shards reset"):
        read_claim(store, SHARD)


def test_claims_and_commands_need_no_jax(tmp_path: Path) -> None:
    program = "import sys; import layertap.fleet.claims, layertap.fleet.commands; sys.exit('jax' in sys.modules)"
    assert commands.run(["-c", program], tmp_path).returncode == 0
