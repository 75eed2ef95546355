"""One suite for every kind of store: it checks what `ObjectStore` promises."""

import fcntl
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from fakes.gcs import FakeGcs
from fakes.s3 import FakeS3

from layertap.errors import DamageError, StorageError, UsageError
from layertap.objects import local as objects_local
from layertap.objects import open_store, remote
from layertap.objects.base import OWNED, ObjectStore
from layertap.objects.content import FileContent, MemoryContent
from layertap.objects.files import file_crc32c
from layertap.objects.retry import Retry

DATA = bytes(range(256)) * 40


def quick() -> Retry:
    return Retry(20.0, first_pause=0.001, longest_pause=0.01)


def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ObjectStore]:
    if request.param in ("gcs", "s3"):
        request.getfixturevalue(request.param)
    urls = {"folder": tmp_path / "store", "gcs": "gs://bucket/some/where", "s3": "s3://bucket/some/where"}
    with closing(open_store(str(urls.get(request.param, f"memory://{tmp_path}")), quick())) as store:
        yield store


store = pytest.fixture(params=["folder", "gcs", "s3", "memory"], name="store")(opened)
shared = pytest.fixture(params=["folder", "gcs"], name="shared")(opened)  # several may write to it


def put(store: ObjectStore, name: str, data: bytes, replaces: str | None = None) -> None:
    store.put(name, MemoryContent([data]), replaces=replaces)


def in_file(folder: Path) -> FileContent:
    (folder / "source").write_bytes(DATA)
    return FileContent(folder / "source", file_crc32c(folder / "source"))


def in_memory(_: Path) -> MemoryContent:
    return MemoryContent([DATA[:1], memoryview(b""), memoryview(np.frombuffer(DATA[1:], np.uint8).reshape(3, -1))])


# Reading and writing


@pytest.mark.parametrize("content", [in_file, in_memory])
@pytest.mark.parametrize("replaces", [None, OWNED])
def test_what_is_put_comes_back_with_size_version_and_checksum(store, tmp_path, content, replaces) -> None:
    info = store.put("a/shard", content(tmp_path), replaces=replaces)
    stored, stat = store.read("a/shard"), store.stat("a/shard")
    assert stored is not None
    assert stat is not None
    assert stored.data == DATA
    assert (info.name, info.size, info.crc32c) == ("a/shard", len(DATA), in_file(tmp_path).crc32c)
    assert (stat.name, stat.size, stat.version) == ("a/shard", len(DATA), info.version)
    assert stat.crc32c in (None, info.crc32c)


@pytest.mark.parametrize("place", ["itself", "below"])
def test_every_way_of_reading_a_part_gives_these_bytes(store: ObjectStore, place: str) -> None:
    put(store, "a/shard", DATA)
    store, name = (store, "a/shard") if place == "itself" else (store.below("a"), "shard")
    with store.open(name) as file, store.open(name, len(DATA)) as sized:
        for start in (0, 1, 250, len(DATA) - 7):
            for length in (0, 1, 7):
                part = DATA[start : start + length]
                assert store.read_range(name, start, length) == part
                assert store.view(name, start, length).tobytes() == part
                assert store.fetch(name, start, length).tobytes() == part
                for one in (file, sized):
                    one.seek(start)
                    assert one.read(length) == part
    assert store.read_range(name, len(DATA) - 5, 100) == DATA[-5:]
    assert store.read_range(name, len(DATA), 100) == b""


@pytest.mark.parametrize("size", [None, len(DATA), len(DATA) + 1])
def test_a_file_is_read_in_order_by_ranges(store: ObjectStore, monkeypatch: pytest.MonkeyPatch, size) -> None:
    monkeypatch.setattr(remote, "_RANGE_BYTES", 1000)
    put(store, "shard", DATA)
    with store.open("shard", size) as file:
        assert file.read(10) + file.read(3000) + file.read() == DATA
        assert file.read() == b""
        file.seek(0)
        assert file.read(len(DATA) + 1) == DATA


@pytest.mark.parametrize("name", ["nothing", "shard"])
def test_what_is_missing_or_too_short_is_damage(store: ObjectStore, name: str) -> None:
    put(store, "shard", b"0123")
    for read in (store.view, store.fetch):
        with pytest.raises(DamageError, match=name):
            read(name, 2, 3)
    assert store.read("nothing") is store.stat("nothing") is None
    for call in (lambda: store.read_range("nothing", 0, 1), lambda: store.open("nothing").read()):
        with pytest.raises(DamageError, match="nothing"):
            call()


def test_an_empty_object_is_an_object(store: ObjectStore) -> None:
    put(store, "empty", b"")
    with store.open("empty") as file:
        assert store.read("empty").data == store.read_range("empty", 0, 10) == file.read() == b""
    assert store.view("empty", 0, 0).size == store.fetch("empty", 0, 0).size == 0


def test_a_listing_has_every_object_below_a_prefix_in_order(store: ObjectStore) -> None:
    assert list(store.list()) == []
    for name in ("b/2", "a", "b/1", "bb", "c/d/e"):
        put(store, name, name.encode())
    assert [info.name for info in store.list()] == ["a", "b/1", "b/2", "bb", "c/d/e"]
    assert [(info.name, info.size) for info in store.list("b/")] == [("b/1", 3), ("b/2", 3)]
    assert [info.name for info in store.list("b")] == ["b/1", "b/2", "bb"]
    assert list(store.list("z")) == []


def test_a_store_below_another_has_the_objects_of_that_folder(store: ObjectStore) -> None:
    inner = store.below("a").below("b")
    put(inner, "c/d", b"inner")
    put(store, "a/bb", b"other")
    assert store.read("a/b/c/d").data == b"inner"
    assert [info.name for info in inner.list()] == ["c/d"]
    assert inner.url == f"{store.url}/a/b"
    with pytest.raises(UsageError, match="no name of an object"):
        store.below("..")


@pytest.mark.parametrize("name", ["", "/absolute", "../up", "a/../../b", "a//b", "./a"])
def test_a_name_that_leads_elsewhere_is_refused(store: ObjectStore, name: str) -> None:
    with pytest.raises(UsageError, match="no name of an object"):
        store.read(name)


@pytest.mark.whole
@pytest.mark.parametrize("replaces", [None, OWNED])
def test_content_that_is_not_what_it_should_be_is_not_stored_in_silence(store, tmp_path: Path, replaces) -> None:
    (tmp_path / "source").write_bytes(b"damaged on disk")
    with pytest.raises(DamageError, match=r"source: does not have CRC-32C 00000000"):
        store.put("x", FileContent(tmp_path / "source", "00000000"), replaces=replaces)
    with pytest.raises(StorageError, match=r"missing: .*[Nn]o such file"):
        store.put("x", FileContent(tmp_path / "missing", "00000000"), replaces=replaces)


def test_the_only_writer_of_a_place_writes_over_what_is_there(store: ObjectStore) -> None:
    for data in (b"one", b"another", b"one"):
        put(store, "x", data, OWNED)
        assert store.read("x").data == data


# What several may change


def test_stores_without_conditions_say_so(tmp_path: Path) -> None:
    store = open_store(f"memory://{tmp_path}")
    assert not store.conditional
    calls: tuple[Callable[[], object], ...] = (
        lambda: store.create("claim", b""),
        lambda: store.replace_if("claim", b"", "1"),
        lambda: store.delete_if("claim", "1"),
        store.server_time,
    )
    for call in calls:
        with pytest.raises(UsageError, match="only one process may write"):
            call()


def test_an_object_changes_only_where_it_is_as_the_caller_last_saw_it(shared: ObjectStore) -> None:
    first = shared.create("claim", b"1")
    assert first is not None
    assert shared.create("claim", b"other") is None
    second = shared.replace_if("claim", b"2", first)
    assert second not in (None, first)
    assert shared.replace_if("claim", b"3", first) is None
    assert not shared.delete_if("claim", first)
    assert shared.read("claim")[:2] == (b"2", second)
    assert shared.delete_if("claim", second)
    assert shared.read("claim") is None
    assert not shared.delete_if("claim", second)
    assert shared.replace_if("claim", b"3", second) is None
    assert shared.read("claim") is None
    assert shared.create("claim", b"again") is not None


def test_a_version_never_comes_back(shared: ObjectStore) -> None:
    version = shared.create("claim", b"same")
    seen = {version}
    for _ in range(50):
        version = shared.replace_if("claim", b"same", version)
        seen.add(version)
    assert shared.delete_if("claim", version)
    seen.add(shared.create("claim", b"same"))
    assert len(seen) == 52


def test_of_racing_creators_one_wins(shared: ObjectStore) -> None:
    start = threading.Barrier(8)

    def race(number: int) -> str | None:
        start.wait()
        return shared.create("claim", str(number).encode())

    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(race, range(8)))
    (winner,) = (number for number, version in enumerate(won) if version)
    assert shared.read("claim")[:2] == (str(winner).encode(), won[winner])


def test_racing_counters_lose_no_count_also_through_a_store_below(shared: ObjectStore) -> None:
    shared.create("a/count", b"0")

    def count(number: int) -> None:
        store, name = (shared, "a/count") if number % 2 else (shared.below("a"), "count")
        while True:
            stored = store.read(name)
            if store.replace_if(name, str(int(stored.data) + 1).encode(), stored.version):
                return

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(count, range(24)))
    assert shared.read("a/count").data == b"24"


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
        for _ in range(100):
            assert len(list(shared.list("claims/"))) <= 20
        ended.set()
        going.result()


def test_other_bytes_are_not_written_over_unless_told_which(shared: ObjectStore) -> None:
    put(shared, "shard", b"mine")
    put(shared, "shard", b"mine")  # the same bytes again: nothing to do
    version = shared.stat("shard").version
    with pytest.raises(StorageError, match="holds other bytes"):
        put(shared, "shard", b"theirs")
    put(shared, "shard", b"theirs", version)
    assert shared.read("shard").data == b"theirs"
    with pytest.raises(StorageError, match="holds other bytes"):
        put(shared, "shard", b"later", version)


@pytest.mark.parametrize("skew", [0.0, 86_400.0])
def test_times_are_the_far_end_s(shared: ObjectStore, request: pytest.FixtureRequest, skew: float) -> None:
    if shared.local and skew:
        pytest.skip("the clock of a folder is this machine's")
    if skew:
        request.getfixturevalue("gcs").state.skew = skew
    shared.create("claim", b"")
    assert abs(shared.server_time() - time.time() - skew) < 30
    assert abs(shared.read("claim").updated - shared.server_time()) < 30


# One kind of store alone


def test_a_range_of_s3_costs_one_request(s3: FakeS3, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_a_store_below_outlives_the_variable_of_the_one_above(gcs: FakeGcs) -> None:
    inner = open_store("gs://bucket/p", quick()).below("a")
    put(inner, "b", b"1")
    assert gcs.contents("bucket") == {"p/a/b": b"1"}
    inner.close()


def test_a_view_of_a_folder_is_a_map_and_what_is_written_to_it_stays_in_memory(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(objects_local, "_OPEN_MAPS", 2)
    store = open_store(str(tmp_path))
    for name in "abc":
        put(store, name, DATA)
    views = [store.view(name, 0, len(DATA)) for name in "aabca"]
    assert np.shares_memory(views[0], views[1])
    assert not np.shares_memory(views[0], views[4])  # two others were kept instead
    views[0][:] = 0
    assert (tmp_path / "a").read_bytes() == store.fetch("a", 0, len(DATA)).tobytes() == DATA


def test_a_folder_is_shared_by_processes_and_owned_without_leftovers(tmp_path: Path) -> None:
    def files() -> list[str]:
        return sorted(path.name for path in tmp_path.rglob("*") if path.is_file())

    store = open_store(str(tmp_path))
    put(store, "deep/er/shard", DATA, OWNED)
    assert files() == ["shard"]
    version = store.create("deep/er/claim", b"1")
    store.below("deep").replace_if("er/claim", b"2", version)
    assert files() == [".objects.lock", "claim", "shard"]
    assert [info.name for info in store.list()] == ["deep/er/claim", "deep/er/shard"]


def test_a_process_that_keeps_a_folder_s_lock_is_not_waited_for_for_good(tmp_path: Path, monkeypatch) -> None:
    store = open_store(str(tmp_path))
    version = store.create("a", b"1")
    monkeypatch.setattr(objects_local, "_LOCK_SECONDS", 0.01)
    with (tmp_path / ".objects.lock").open("rb") as stopped:
        fcntl.flock(stopped, fcntl.LOCK_EX)
        for write in (lambda: store.create("b", b""), lambda: store.delete_if("a", version)):
            with pytest.raises(StorageError, match=r"objects\.lock: was held by others .* let it continue, or end it"):
                write()
        put(store, "c", b"", OWNED)
        assert store.read("a").data == b"1"
        assert [info.name for info in store.list()] == ["a", "c"]
        assert store.server_time() > 0
    assert store.delete_if("a", version)


def test_a_folder_s_lock_is_not_held_while_the_disk_is_waited_for(tmp_path: Path, monkeypatch) -> None:
    def sync(path: Path) -> None:
        if (tmp_path / ".objects.lock").exists():
            with (tmp_path / ".objects.lock").open("rb") as other:
                fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        synced.append(path.is_dir())

    synced: list[bool] = []
    monkeypatch.setattr(objects_local, "sync", sync)
    store = open_store(str(tmp_path))
    assert store.delete_if("a", store.replace_if("a", b"2", store.create("a", b"1")))
    assert synced == [False, True, False, True, True]  # the file, then its folder; the folder


def test_a_place_that_cannot_be_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="a file is where a folder should be"):
        open_store(str(tmp_path / "file")).create("claim", b"")
    with pytest.raises(UsageError, match="nosuch"):
        open_store("nosuch://place")
    with pytest.raises(UsageError, match="~nobody-of-this-name"):
        open_store("~nobody-of-this-name/x")
