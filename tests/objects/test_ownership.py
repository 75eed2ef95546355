"""One process for each place: who is refused, who takes over, and who notices another writer."""

import dataclasses
import json
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from clouds import BUCKET
from fakes.gcs import FakeGcs
from fakes.gcs_faults import wait_for
from holders import end, holder, kill

from layertap.errors import StorageError
from layertap.objects import open_store, ownership
from layertap.objects.base import ObjectStore
from layertap.objects.ownership import Owner, OwnObject
from layertap.objects.retry import Retry


@pytest.fixture
def store(gcs: FakeGcs) -> Iterator[ObjectStore]:
    with closing(open_store(f"gs://{BUCKET}/place", Retry(5.0, first_pause=0.001))) as opened:
        yield opened


def write_claim(gcs: FakeGcs, **changes: object) -> None:
    """A claim of a process elsewhere."""
    claim = dataclasses.asdict(ownership._own_claim()) | {"host": "tpu-7", "pid": 4711, "machine": "elsewhere"}
    gcs.put(BUCKET, "place/owner.json", json.dumps(claim | changes).encode())


def test_a_second_process_is_refused_a_bucket_while_the_first_lives(store) -> None:
    with holder(store.url) as first:
        with pytest.raises(StorageError) as refused, Owner(store, beat=0.1):
            pytest.fail("two processes hold one place")
        assert f"process {first.pid} on " in str(refused.value)
        assert "would take over 60 s after its last sign of life" in str(refused.value)
        assert "--worker_id" in str(refused.value)


def test_a_killed_process_of_this_machine_is_taken_over_from_at_once(store) -> None:
    with holder(store.url) as first:
        kill(first)
        with Owner(store, expiry=10_000.0, beat=10_000.0):
            pass


def test_a_process_that_ends_leaves_no_claim(gcs: FakeGcs, store) -> None:
    with holder(store.url) as first:
        end(first)
    assert gcs.contents(BUCKET) == {}


@pytest.mark.whole
@pytest.mark.parametrize("skew", [-3600.0, 0.0, 3600.0])
def test_an_owner_elsewhere_that_gives_no_sign_of_life_expires_by_the_server_s_clock(gcs, store, skew) -> None:
    gcs.state.skew = skew
    write_claim(gcs)
    begun = time.monotonic()
    with Owner(store, expiry=1.5, beat=0.1):
        assert time.monotonic() - begun > 0.4  # the server's date has whole seconds
        assert json.loads(gcs.contents(BUCKET)["place/owner.json"])["host"] != "tpu-7"


def test_an_old_claim_is_taken_over_at_once(gcs: FakeGcs, store) -> None:
    gcs.state.skew = -3600.0
    write_claim(gcs)
    gcs.state.skew = 0.0
    with Owner(store, beat=10_000.0):
        pass


def test_a_claim_that_cannot_be_read_expires_too(gcs: FakeGcs, store) -> None:
    gcs.put(BUCKET, "place/owner.json", b"garbage")
    with Owner(store, expiry=0.5, beat=0.1):
        pass


def test_an_owner_that_was_taken_over_from_notices_it_and_leaves_the_other_s_claim(gcs: FakeGcs, store) -> None:
    def is_lost() -> bool:
        try:
            held.require()
        except StorageError as error:
            return "another process has taken over" in str(error)
        return False

    with Owner(store, beat=0.02) as held:
        held.require()
        write_claim(gcs)
        wait_for(is_lost)
    assert json.loads(gcs.contents(BUCKET)["place/owner.json"])["host"] == "tpu-7"


def test_signs_of_life_survive_faults(gcs: FakeGcs, store) -> None:
    gcs.faults.storm = 0.3
    with Owner(store, beat=0.01) as held:
        seen = gcs.faults.count("insert")
        wait_for(lambda: gcs.faults.count("insert") > seen + 30)
        held.require()
    gcs.faults.storm = 0.0
    assert gcs.contents(BUCKET) == {}


def test_a_folder_can_have_an_owner_too(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    with Owner(store, beat=0.02), pytest.raises(StorageError, match="writes here"), Owner(store, beat=0.05):
        pytest.fail("held twice")
    with Owner(store):
        pass


def test_where_nothing_is_conditional_nobody_is_refused(tmp_path: Path) -> None:
    store = open_store(f"memory://{tmp_path}")
    with Owner(store), Owner(store) as second:
        second.require()


# An object with one writer


@pytest.fixture(params=["folder", "memory", "s3"])
def anywhere(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ObjectStore]:
    if request.param == "s3":
        request.getfixturevalue("s3")
    urls = {"folder": str(tmp_path), "memory": f"memory://{tmp_path}", "s3": "s3://bucket/a"}
    with closing(open_store(urls[request.param])) as opened:
        yield opened


def test_a_process_that_writes_alone_is_never_stopped(anywhere: ObjectStore) -> None:
    first = OwnObject(anywhere, "it")
    for data in (b"one", b"two", b"two", b"three"):
        first.write(data)
    later = OwnObject(anywhere, "it")
    assert later.data == b"three"
    later.write(b"four")
    assert anywhere.read("it").data == b"four"


@pytest.mark.parametrize("before", [None, b"before"])
def test_of_two_writers_one_stops_before_it_writes_over_the_other(anywhere: ObjectStore, before: bytes | None) -> None:
    if before is not None:
        OwnObject(anywhere, "it").write(before)
    one, other = OwnObject(anywhere, "it"), OwnObject(anywhere, "it")
    other.write(b"the other's")
    with pytest.raises(StorageError, match="another process has written it"):
        one.write(b"one's")
    assert anywhere.read("it").data == b"the other's"
    other.write(b"the other's again")
