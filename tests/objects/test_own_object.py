"""An object with one writer: a second one is noticed, with conditional writes and without."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from layertap.errors import StorageError
from layertap.objects import open_store
from layertap.objects.base import ObjectStore
from layertap.objects.ownership import OwnObject


@pytest.fixture(params=["folder", "memory", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ObjectStore]:
    if request.param == "s3":
        request.getfixturevalue("s3")
    opened = open_store(
        {"folder": str(tmp_path), "memory": f"memory://{tmp_path}", "s3": "s3://bucket/a"}[request.param]
    )
    yield opened
    opened.close()


def test_who_writes_alone_is_never_stopped(store: ObjectStore) -> None:
    first = OwnObject(store, "it")
    for data in (b"one", b"two", b"two", b"three"):
        first.write(data)
    later = OwnObject(store, "it")
    assert later.data == b"three"
    later.write(b"four")
    assert store.read("it").data == b"four"


@pytest.mark.parametrize("before", [None, b"before"])
def test_of_two_writers_one_stops_before_it_writes_over_the_other(store: ObjectStore, before: bytes | None) -> None:
    if before is not None:
        OwnObject(store, "it").write(before)
    one, other = OwnObject(store, "it"), OwnObject(store, "it")
    other.write(b"the other's")
    with pytest.raises(StorageError, match="another process has written it"):
        one.write(b"one's")
    assert store.read("it").data == b"the other's"
    other.write(b"the other's again")
