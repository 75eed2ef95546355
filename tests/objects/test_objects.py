"""One suite for every kind of store: what `ObjectStore` promises."""

import fcntl
import itertools
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
from fakes.gcs import FakeGcs
from fakes.s3 import FakeS3

from layertap.errors import DamageError, StorageError, UsageError
from layertap.objects import local as objects_local
from layertap.objects import open_store
from layertap.objects.base import ObjectStore
from layertap.objects.content import FileContent
from layertap.objects.files import file_crc32c
from layertap.objects.retry import Retry

CONDITIONAL = ("folder", "gcs")


def quick() -> Retry:
    return Retry(20.0, first_pause=0.001, longest_pause=0.01)


@pytest.fixture(params=["folder", "gcs", "s3", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ObjectStore]:
    if request.param in ("gcs", "s3"):
        request.getfixturevalue(request.param)
    urls = {"folder": str(tmp_path / "store"), "gcs": "gs://bucket/some/where", "s3": "s3://bucket/some/where"}
    opened = open_store(urls.get(request.param, f"memory://{tmp_path}"), quick())
    yield opened
    opened.close()


@pytest.fixture(params=CONDITIONAL)
def shared(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ObjectStore]:
    """A store that several may write to."""
    if request.param == "gcs":
        request.getfixturevalue("gcs")
    opened = open_store({"folder": str(tmp_path / "store"), "gcs": "gs://bucket/p"}[request.param], quick())
    yield opened
    opened.close()


@pytest.fixture
def put(tmp_path: Path) -> Callable[[ObjectStore, str, bytes], None]:
    """Upload these bytes."""
    numbers = itertools.count()

    def put(store: ObjectStore, name: str, data: bytes, replaces: str | None = None) -> None:
        path = tmp_path / f"source{next(numbers)}"
        path.write_bytes(data)
        store.put(name, FileContent(path, file_crc32c(path)), replaces=replaces)

    return put


def test_a_range_costs_one_request(s3: FakeS3, put, monkeypatch: pytest.MonkeyPatch) -> None:
    from aiobotocore.client import AioBaseClient

    asked: list[str] = []
    call = AioBaseClient._make_api_call

    def counted(self, operation: str, *arguments):
        asked.append(operation)
        return call(self, operation, *arguments)

    monkeypatch.setattr(AioBaseClient, "_make_api_call", counted)
    with closing(open_store("s3://bucket/some/where", quick())) as store:
        put(store, "shard", b"0123456789")
        asked.clear()
        assert [store.read_range("shard", start, 3) for start in (0, 4, 9)] == [b"012", b"456", b"9"]
        assert asked == ["GetObject"] * 3
        asked.clear()
        assert store.read_range("shard", 10, 3) == b""
        assert asked == ["GetObject", "HeadObject"]


def test_what_was_uploaded_is_read_back_whole_and_in_part(store: ObjectStore, put) -> None:
    put(store, "a/shard", bytes(range(256)) * 40)
    stored = store.read("a/shard")
    assert stored is not None
    assert stored.data == bytes(range(256)) * 40
    assert store.read_range("a/shard", 250, 10) == bytes([250, 251, 252, 253, 254, 255, 0, 1, 2, 3])
    assert store.read_range("a/shard", 10235, 100) == bytes(range(251, 256))
    assert store.read_range("a/shard", 10240, 100) == b""
    assert store.read_range("a/shard", 0, 0) == b""


def test_what_is_not_there_is_none_and_its_bytes_are_missed(store: ObjectStore) -> None:
    assert store.read("nothing") is None
    assert store.stat("nothing") is None
    with pytest.raises(DamageError, match="nothing"):
        store.read_range("nothing", 0, 1)


def test_an_upload_tells_size_version_and_checksum(store: ObjectStore, tmp_path: Path) -> None:
    path = tmp_path / "source"
    path.write_bytes(b"some bytes")
    info = store.put("x", FileContent(path, file_crc32c(path)))
    assert (info.name, info.size, info.crc32c) == ("x", 10, file_crc32c(path))
    stat = store.stat("x")
    assert stat is not None
    assert (stat.name, stat.size, stat.version) == ("x", 10, info.version)
    assert stat.crc32c in (None, info.crc32c)


def test_an_empty_file_is_an_object(store: ObjectStore, put) -> None:
    put(store, "empty", b"")
    assert store.read("empty").data == b""
    assert store.read_range("empty", 0, 10) == b""


def test_a_listing_has_every_object_below_a_prefix_in_order(store: ObjectStore, put) -> None:
    for name in ("b/2", "a", "b/1", "bb", "c/d/e"):
        put(store, name, name.encode())
    assert [info.name for info in store.list()] == ["a", "b/1", "b/2", "bb", "c/d/e"]
    assert [(info.name, info.size) for info in store.list("b/")] == [("b/1", 3), ("b/2", 3)]
    assert [info.name for info in store.list("b")] == ["b/1", "b/2", "bb"]
    assert list(store.list("z")) == []


def test_an_empty_store_lists_nothing(store: ObjectStore) -> None:
    assert list(store.list()) == []


@pytest.mark.parametrize("name", ["", "/absolute", "../up", "a/../../b", "a//b", "./a"])
def test_a_name_that_leads_elsewhere_is_refused(store: ObjectStore, name: str) -> None:
    with pytest.raises(UsageError, match="no name of an object"):
        store.read(name)


def test_a_file_that_is_not_what_its_checksum_says_is_not_uploaded_in_silence(store: ObjectStore, tmp_path) -> None:
    (tmp_path / "source").write_bytes(b"damaged on disk")
    with pytest.raises(DamageError, match=r"source: does not have CRC-32C 00000000"):
        store.put("x", FileContent(tmp_path / "source", "00000000"))


def test_a_file_that_is_not_there_is_named(store: ObjectStore, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"missing: .*[Nn]o such file"):
        store.put("x", FileContent(tmp_path / "missing", "00000000"))


def test_stores_without_conditions_say_so(store: ObjectStore) -> None:
    if store.conditional:
        return
    calls = (
        lambda: store.create("claim", b""),
        lambda: store.replace_if("claim", b"", "1"),
        lambda: store.delete_if("claim", "1"),
        store.server_time,
    )
    for call in calls:
        with pytest.raises(UsageError, match="only one process may write"):
            call()


def test_only_what_does_not_exist_is_created(shared: ObjectStore) -> None:
    version = shared.create("claim", b"first")
    assert version is not None
    assert shared.create("claim", b"second") is None
    stored = shared.read("claim")
    assert (stored.data, stored.version) == (b"first", version)


def test_only_what_is_of_that_version_is_replaced(shared: ObjectStore) -> None:
    first = shared.create("claim", b"1")
    second = shared.replace_if("claim", b"2", first)
    assert second not in (None, first)
    assert shared.replace_if("claim", b"3", first) is None
    assert shared.read("claim")[:2] == (b"2", second)
    assert shared.replace_if("gone", b"3", first) is None
    assert shared.read("gone") is None


def test_a_version_never_comes_back(shared: ObjectStore) -> None:
    version = shared.create("claim", b"same")
    seen = {version}
    for _ in range(50):
        version = shared.replace_if("claim", b"same", version)
        seen.add(version)
    assert shared.delete_if("claim", version)
    seen.add(shared.create("claim", b"same"))
    assert len(seen) == 52


def test_only_what_is_of_that_version_is_deleted(shared: ObjectStore) -> None:
    first = shared.create("claim", b"1")
    second = shared.replace_if("claim", b"2", first)
    assert not shared.delete_if("claim", first)
    assert shared.delete_if("claim", second)
    assert shared.read("claim") is None
    assert not shared.delete_if("claim", second)
    assert shared.create("claim", b"again") is not None


def test_of_racing_creators_one_wins(shared: ObjectStore) -> None:
    start = threading.Barrier(8)

    def race(number: int) -> str | None:
        start.wait()
        return shared.create("claim", str(number).encode())

    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(race, range(8)))
    (winner,) = (number for number, version in enumerate(won) if version)
    assert shared.read("claim")[:2] == (str(winner).encode(), won[winner])


def test_listings_survive_what_others_delete_meanwhile(shared: ObjectStore) -> None:
    ended = threading.Event()

    def come_and_go() -> None:
        while not ended.is_set():
            for number in range(20):
                version = shared.create(f"claims/{number}", b"x")
                assert version is not None
                shared.delete_if(f"claims/{number}", version)

    with ThreadPoolExecutor(1) as pool:
        going = pool.submit(come_and_go)
        for _ in range(200):
            assert len(list(shared.list("claims/"))) <= 20
        ended.set()
        going.result()


def test_racing_counters_lose_no_count(shared: ObjectStore) -> None:
    shared.create("count", b"0")

    def count(_: int) -> None:
        while True:
            stored = shared.read("count")
            if shared.replace_if("count", str(int(stored.data) + 1).encode(), stored.version):
                return

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(count, range(24)))
    assert shared.read("count").data == b"24"


def test_an_upload_does_not_write_over_other_bytes_unless_told_which(shared: ObjectStore, put) -> None:
    put(shared, "shard", b"mine")
    put(shared, "shard", b"mine")  # the same bytes again: nothing to do
    version = shared.stat("shard").version
    with pytest.raises(StorageError, match="holds other bytes"):
        put(shared, "shard", b"theirs")
    put(shared, "shard", b"theirs", version)
    assert shared.read("shard").data == b"theirs"
    with pytest.raises(StorageError, match="holds other bytes"):
        put(shared, "shard", b"later", version)


def test_times_are_the_far_end_s(shared: ObjectStore) -> None:
    shared.create("claim", b"")
    updated = shared.read("claim").updated
    assert abs(shared.server_time() - updated) < 30


def test_a_bucket_s_clock_counts_and_not_this_machine_s(gcs: FakeGcs) -> None:
    gcs.state.skew = 86_400.0
    store = open_store("gs://bucket/p", quick())
    store.create("claim", b"")
    assert abs(store.server_time() - time.time() - 86_400) < 30
    assert abs(store.read("claim").updated - store.server_time()) < 30
    store.close()


def test_a_folder_is_shared_by_processes_without_leftovers(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    version = store.create("deep/er/claim", b"1")
    store.replace_if("deep/er/claim", b"2", version)
    assert [info.name for info in store.list()] == ["deep/er/claim"]
    files = sorted(path.name for path in tmp_path.rglob("*") if path.is_file())
    assert files == [".objects.lock", "claim"]


def test_who_keeps_a_folder_s_lock_is_not_waited_for_for_good(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(str(tmp_path))
    version = store.create("a", b"1")
    monkeypatch.setattr(objects_local, "_LOCK_SECONDS", 0.01)
    with (tmp_path / ".objects.lock").open("rb") as stopped:
        fcntl.flock(stopped, fcntl.LOCK_EX)
        for write in (lambda: store.create("b", b""), lambda: store.delete_if("a", version)):
            with pytest.raises(StorageError, match=r"objects\.lock: was held by others .* let it go on, or end it"):
                write()
        assert store.read("a").data == b"1"
        assert [info.name for info in store.list()] == ["a"]
        assert store.server_time() > 0
    assert store.delete_if("a", version)


def test_a_folder_s_lock_is_not_held_while_the_disk_is_waited_for(tmp_path: Path, monkeypatch) -> None:
    def sync(path: Path) -> None:
        if path.exists() and (tmp_path / ".objects.lock").exists():
            with (tmp_path / ".objects.lock").open("rb") as other:
                fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        synced.append(path.is_dir())

    synced: list[bool] = []
    monkeypatch.setattr(objects_local, "sync", sync)
    store = open_store(str(tmp_path))
    assert store.delete_if("a", store.replace_if("a", b"2", store.create("a", b"1")))
    assert synced == [False, True, False, True, True]


def test_a_file_in_the_place_of_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="a file stands where a folder should"):
        open_store(str(tmp_path / "file")).create("claim", b"")


def test_a_url_of_nobody_s_is_refused() -> None:
    with pytest.raises(UsageError, match="nosuch"):
        open_store("nosuch://place")
