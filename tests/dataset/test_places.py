"""Places are found locally and behind URLs, and places that refuse to be read are named."""

import gzip
import os
import subprocess
import sys

import commands
import fsspec
import pytest
from clouds import BUCKET

from layertap.dataset.folders import list_files
from layertap.dataset.places import Place, locate
from layertap.errors import DatasetError


def test_a_home_folder_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a.json").write_bytes(b"x\ny")

    assert list(locate("~/a.json").lines()) == [b"x\n", b"y"]


def test_gzip_is_known_by_its_bytes_not_by_its_name(tmp_path):
    (tmp_path / "packed.json").write_bytes(gzip.compress(b"x\n"))
    (tmp_path / "plain.json.gz").write_bytes(b"y\n")

    assert list(locate(str(tmp_path / "packed.json")).lines()) == [b"x\n"]
    assert list(locate(str(tmp_path / "plain.json.gz")).lines()) == [b"y\n"]


def test_lines_end_at_line_feeds_alone(tmp_path):
    (tmp_path / "a").write_bytes("x\u2028y\rz\x0c\n".encode())

    assert list(locate(str(tmp_path / "a")).lines()) == ["x\u2028y\rz\x0c\n".encode()]


def test_names_drop_their_packing():
    place = locate("memory://folder/a.b.json.gz")

    assert (place.name, place.stem, str(place)) == ("a.b.json", "a.b", "memory://folder/a.b.json.gz")


def test_a_place_beside_differs_in_its_last_part_only():
    beside = locate("memory://old/x_old.json").beside("old", "new")

    assert (beside.shown, beside.path) == ("memory://old/x_new.json", "/old/x_new.json")


def test_files_of_a_url_are_told_as_urls():
    fsspec.filesystem("memory").pipe("/listed/b.json", b"1")
    fsspec.filesystem("memory").pipe("/listed/a.json", b"2")

    for place in (locate("memory://listed/"), locate("memory://listed/*.json")):
        listing = list_files(place, "auto")
        assert listing is not None
        assert [str(file) for file in listing.files] == ["memory://listed/a.json", "memory://listed/b.json"]
        assert list(listing.files[0].lines()) == [b"2"]


@pytest.mark.parametrize("path", ["/nowhere/at/all.jsonl", "memory://nowhere/at/all.jsonl"])
def test_nothing_there_is_said(path):
    with pytest.raises(DatasetError, match=f"^{path}: no such file"):
        list(locate(path).lines())


@pytest.mark.parametrize(
    ("path", "complaint"),
    [
        ("nope://a", "^nope://a: Protocol not known: nope; give a local path or a URL"),
        ("", "the dataset path is empty"),  # and not the working folder
    ],
)
def test_a_path_that_names_no_place_is_said(path, complaint):
    with pytest.raises(DatasetError, match=complaint):
        locate(path)


_PACKED = gzip.compress(bytes(range(100)))


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(_PACKED[:-12], id="cut short"),
        pytest.param(_PACKED[:30] + b"\xff" + _PACKED[31:], id="checksum"),
        pytest.param(_PACKED[:10] + b"\xff" + _PACKED[11:], id="block type"),
    ],
)
def test_damaged_gzip_is_said(tmp_path, data):
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(data)

    with pytest.raises(DatasetError, match=r"a\.jsonl\.gz: its gzip data is damaged"):
        list(locate(str(path)).lines())


class _Refusing:
    """A file system that answers everything with the same failure."""

    def __init__(self, failure: OSError) -> None:
        self.failure = failure

    def open(self, *_):
        raise self.failure

    info = open


def test_a_refusal_of_rights_is_said():
    locked = Place("gs://b/a.json", "b/a.json", _Refusing(PermissionError(13, "Permission denied")))

    with pytest.raises(DatasetError, match=r"^gs://b/a\.json: not allowed \(.*\); ask its owner"):
        list(locked.lines())


def test_a_lost_connection_is_not_an_absence():
    lost = Place("gs://b/a.json", "b/a.json", _Refusing(ConnectionResetError("reset by peer")))

    with pytest.raises(DatasetError, match=r"no connection \(reset by peer\)"):
        lost.is_there()


def test_fsspec_waits_until_it_is_needed():
    code = "import sys, layertap.dataset; sys.exit('fsspec' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}

    assert subprocess.run([sys.executable, "-c", code], env=environment, check=False).returncode == 0


def test_a_dataset_is_read_from_a_bucket_without_a_question_about_the_bucket(gcs, demo_tasks, tmp_path):
    code = "from layertap.dataset import read_records; print(len([*read_records('gs://bucket/data/tasks.jsonl')]))"
    gcs.put(BUCKET, "data/tasks.jsonl", demo_tasks.read_bytes())
    read = commands.run(["-c", code], tmp_path)
    assert (read.stdout, read.stderr) == ("10\n", "")


def test_a_folder_and_a_pattern_of_a_bucket(gcs, demo_tasks, tmp_path):
    lines = demo_tasks.read_bytes().splitlines(keepends=True)
    gcs.put(BUCKET, "data/more/", b"")  # what consoles make of a folder
    gcs.put(BUCKET, "data/a.jsonl", b"".join(lines[:3]))
    gcs.put(BUCKET, "data/more/b.jsonl.gz", gzip.compress(b"".join(lines[3:])))
    gcs.put(BUCKET, "data/notes.md", b"x")
    code = (
        "from layertap.dataset import read_records\n"
        "for url in ('gs://bucket/data', 'gs://bucket/data/*.jsonl', 'gs://bucket/d*'):\n"
        "    print(len([*read_records(url)]))"
    )
    read = commands.run(["-c", code], tmp_path)
    assert (read.stdout.split(), read.stderr) == (["10", "3", "10"], "")
