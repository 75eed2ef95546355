"""A bucket that fails in every way: the caller knows what took effect, and everything else is
retried.
"""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from itertools import product
from pathlib import Path

import pytest
from fakes.gcs import FakeGcs

from layertap.errors import AccessError, StorageError, UsageError
from layertap.objects import open_store
from layertap.objects.base import OWNED, ObjectStore
from layertap.objects.content import FileContent, MemoryContent
from layertap.objects.files import file_crc32c
from layertap.objects.retry import Retry

WAYS = ("refuse", "lose", "reset", "vanish", "truncate")
BIG = 9 << 20  # more than the client sends in one request


def opened(seconds: float = 20.0, place: str = "bucket/p") -> ObjectStore:
    return open_store(f"gs://{place}", Retry(seconds, first_pause=0.001, longest_pause=0.01))


@pytest.fixture
def store(gcs: FakeGcs) -> Iterator[ObjectStore]:
    with closing(opened()) as store:
        yield store


def big(folder: Path) -> FileContent:
    path = folder / "shard"
    path.write_bytes(bytes(range(256)) * (BIG // 256))
    return FileContent(path, file_crc32c(path))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("times", [1, 3])
def test_a_write_knows_whether_it_took_effect(gcs: FakeGcs, store: ObjectStore, way, times) -> None:
    gcs.faults.plan(way, "insert", "claim", times=times)
    version = store.create("claim", b"1")
    assert store.read("claim")[:2] == (b"1", version)
    gcs.faults.plan(way, "insert", "claim", times=times)
    version = store.replace_if("claim", b"2", version)
    assert store.read("claim")[:2] == (b"2", version)
    gcs.faults.plan(way, "delete", "claim", times=times)
    assert store.delete_if("claim", version)
    assert store.read("claim") is None


@pytest.mark.parametrize("way", ["lose", "vanish", "refuse", "reset"])
def test_a_create_whose_object_a_rival_has_by_the_second_attempt_has_lost(gcs: FakeGcs, store, way) -> None:
    gcs.faults.plan(way, "insert", "claim")
    gcs.faults.plan("call", "insert", "claim", action=lambda: gcs.put("bucket", "p/claim", b"rival"))
    assert store.create("claim", b"mine") is None
    assert store.read("claim").data == b"rival"


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_refusals_that_pass_are_tried_again(gcs: FakeGcs, store: ObjectStore, status) -> None:
    gcs.faults.plan("refuse", status=status, times=3)
    assert store.create("claim", b"1")


@pytest.mark.parametrize(("operation", "way"), [*product(("stat", "media"), WAYS), ("media", "corrupt")])
def test_reading_survives(gcs: FakeGcs, store: ObjectStore, way, operation) -> None:
    store.create("claim", b"some bytes")
    gcs.faults.plan(way, operation, "claim", times=2)
    assert store.read("claim").data == b"some bytes"


@pytest.mark.parametrize("way", WAYS)
def test_range_reads_and_listings_survive(gcs: FakeGcs, store: ObjectStore, way) -> None:
    gcs.page_size = 2
    for number in range(5):
        store.create(str(number), b"0123456789")
    gcs.faults.plan(way, "list", times=2)
    assert [info.name for info in store.list()] == ["0", "1", "2", "3", "4"]
    gcs.faults.plan(way, "media", "3", times=2)
    assert store.read_range("3", 2, 3) == b"234"


@pytest.mark.parametrize(("operation", "way"), [*product(("start", "chunk"), WAYS), ("chunk", "corrupt")])
def test_a_big_upload_survives_and_is_whole(gcs: FakeGcs, store: ObjectStore, tmp_path: Path, way, operation) -> None:
    gcs.faults.plan(way, operation, "shard", times=2)
    content = big(tmp_path)
    info = store.put("shard", content)
    assert (info.size, info.crc32c) == (BIG, content.crc32c)
    assert gcs.contents("bucket", "p/") == {"shard": content.path.read_bytes()}


@pytest.mark.parametrize("replaces", [None, OWNED])
@pytest.mark.parametrize("way", [*WAYS, "corrupt"])
def test_a_small_upload_survives_and_is_whole(gcs: FakeGcs, store: ObjectStore, way, replaces) -> None:
    gcs.faults.plan(way, "insert", "shard", times=2)
    store.put("shard", MemoryContent([b"sm", b"all"]), replaces=replaces)
    assert gcs.contents("bucket", "p/") == {"shard": b"small"}


def test_when_time_runs_out_the_message_names_the_object(gcs: FakeGcs) -> None:
    gcs.faults.plan("refuse", times=10_000)
    with closing(opened(0.1)) as store:
        with pytest.raises(StorageError, match=r"p/shard: failed \d+ times .*check the network and the bucket"):
            store.put("shard", MemoryContent([b"x"]))
        with pytest.raises(StorageError, match=r"gs://bucket/p/claim: failed"):
            store.create("claim", b"")


def test_a_server_that_is_gone_is_an_outage_too(monkeypatch: pytest.MonkeyPatch) -> None:
    with FakeGcs() as server:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", server.endpoint)
    with closing(opened(0.1)) as store, pytest.raises(StorageError, match="failed"):
        store.read("x")


def test_an_attempt_that_must_stop_does_not_wait(gcs: FakeGcs) -> None:
    retry = Retry(3600.0, first_pause=3600.0, longest_pause=3600.0)
    gcs.faults.plan("refuse", times=10_000)
    with closing(open_store("gs://bucket/p", retry)) as store, ThreadPoolExecutor(1) as pool:
        creating = pool.submit(store.create, "claim", b"")
        retry.stop()
        assert isinstance(creating.exception(60), StorageError)


@pytest.mark.parametrize(
    ("call", "arguments"),
    [
        ("create", ("x", b"")),
        ("read", ("x",)),
        ("stat", ("x",)),
        ("list", ()),
        ("put", ("x", MemoryContent([b"x"]))),
        ("delete_if", ("x", "1")),
        ("read_range", ("x", 0, 1)),
        ("server_time", ()),
    ],
)
def test_a_bucket_that_is_missing_or_forbidden_is_named(gcs: FakeGcs, call, arguments) -> None:
    gcs.state.objects["locked"] = {}
    gcs.state.forbidden.add("locked")
    for bucket, error, message in (("absent", UsageError, "no such bucket"), ("locked", AccessError, "not allowed")):
        with closing(opened(5.0, f"{bucket}/p")) as store, pytest.raises(error, match=rf"gs://{bucket}.*{message}"):
            list(getattr(store, call)(*arguments) or ())


def test_google_s_client_asks_for_nothing_by_itself(gcs: FakeGcs, monkeypatch: pytest.MonkeyPatch) -> None:
    """By default the client has a thread that asks for the bucket's metadata, for ever if the
    bucket is gone.
    """
    monkeypatch.delenv("DISABLE_GCS_PYTHON_CLIENT_OTEL_BUCKET_METADATA", raising=False)
    started: list[str] = []
    start = threading.Thread.start

    def noted(thread: threading.Thread) -> None:
        if threading.current_thread() is threading.main_thread():
            started.append(thread.name)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", noted)
    with closing(open_store("gs://bucket")) as store:
        store.create("name", b"content")
        assert store.read("name").data == b"content"
        assert store.stat("none") is None
        assert [info.name for info in store.list()] == ["name"]
    assert not started
    assert {request.operation for request in gcs.faults.log} == {"insert", "stat", "media", "list"}
