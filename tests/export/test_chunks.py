"""Chunks may have any length: the export does not depend on where they end."""

from pathlib import Path
from typing import Any

import exports
import numpy as np
import outputs
import pytest
from clouds import BUCKET
from fakes.gcs import FakeGcs
from hypothesis import given, settings
from hypothesis import strategies as st

from layertap.export import source
from layertap.export.hf import whole_samples
from layertap.export.saelens import in_contexts
from layertap.reader.pieces import Rows

datasets = pytest.importorskip("datasets")


def rows(lengths: list[int]) -> Rows:
    """Return samples of these lengths; each token has its own number."""
    count = sum(lengths)
    numbers = np.arange(count, dtype=np.int32)
    return Rows([numbers[:, None].astype(np.float32)], {"token_ids": numbers}, np.repeat(range(len(lengths)), lengths))


LENGTHS = st.lists(st.integers(1, 9), min_size=1, max_size=12)


def cut(whole: Rows, data: st.DataObject) -> list[Rows]:
    """The same in chunks, some of them empty."""
    ends = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=6)))
    return [whole[begin:end] for begin, end in zip([0, *ends], [*ends, len(whole)], strict=True)]


@given(LENGTHS, st.integers(1, 7), st.integers(1, 20), st.data())
def test_contexts_are_whole_and_in_order(lengths: list[int], size: int, most: int, data: st.DataObject) -> None:
    whole = rows(lengths)
    found = list(in_contexts(cut(whole, data), size, most))
    assert all(0 < len(part) <= max(most, size) and len(part) % size == 0 for part in found)
    joined = np.concatenate([np.empty(0, np.int32), *(part.columns["token_ids"] for part in found)])
    assert joined.tolist() == list(range(len(whole) // size * size))
    assert all(np.array_equal(part.activations[0][:, 0], part.columns["token_ids"]) for part in found)


@given(LENGTHS, st.data())
def test_samples_are_whole_and_in_order(lengths: list[int], data: st.DataObject) -> None:
    found = list(whole_samples(cut(rows(lengths), data)))
    assert np.concatenate([part.samples for part in found]).tolist() == np.repeat(range(len(lengths)), lengths).tolist()
    assert np.concatenate([part.columns["token_ids"] for part in found]).tolist() == list(range(sum(lengths)))
    numbers = [set(part.samples.tolist()) for part in found]
    assert sum(map(len, numbers)) == len(set().union(*numbers)), "no sample is in two"


@pytest.mark.parametrize("tokens", [1, 2, 5])
@pytest.mark.parametrize("form", ["saelens", "hf"])
def test_folders_of_datasets_are_equal(
    form: str, tokens: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    datasets.disable_progress_bars()
    outputs.write(tmp_path / "run", outputs.three_shards(), outputs.shard_format(name="safetensors"))
    flags: list[Any] = ["--to", form, "--exclude", "special", *(["--context_size", "3"] if form == "saelens" else [])]
    exports.told(capsys, tmp_path / "run", tmp_path / "large", *flags)
    monkeypatch.setattr(source, "_CHUNK_BYTES", 4 * 2 * outputs.HIDDEN * tokens)
    exports.told(capsys, tmp_path / "run", tmp_path / "small", *flags)
    large, small = (datasets.load_from_disk(str(tmp_path / name)).to_list() for name in ("large", "small"))
    assert large == small


def test_folders_of_memmap_are_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    outputs.write(tmp_path / "run", outputs.three_shards(), outputs.shard_format(name="pickle"))
    exports.told(capsys, tmp_path / "run", tmp_path / "large", "--to", "memmap", "--exclude", "first")
    monkeypatch.setattr(source, "_CHUNK_BYTES", 1)
    exports.told(capsys, tmp_path / "run", tmp_path / "small", "--to", "memmap", "--exclude", "first")
    assert exports.contents(tmp_path / "large") == exports.contents(tmp_path / "small")
    columns = [dict(np.load(path)) for path in sorted((tmp_path / "large" / "columns").iterdir())]
    assert np.concatenate([part["positions"] for part in columns]).tolist() == [
        1,
        2,
        1,
        2,
        3,
        4,
        1,
        2,
        1,
        2,
        3,
        1,
        1,
        2,
        3,
        4,
        5,
    ]


@settings(max_examples=5)
@given(st.lists(st.integers(0, 2), min_size=1, max_size=3))
def test_shards_without_a_wanted_token_are_left_out_of_memmap(
    tmp_path_factory: pytest.TempPathFactory, empty: list[int]
) -> None:
    from layertap.cli import main

    folder = tmp_path_factory.mktemp("empty")
    contents = outputs.three_shards()
    for shard in set(empty):
        for sample in contents[shard]:
            sample.columns["flags"][:] |= 2  # all are special
    outputs.write(folder / "run", contents, outputs.shard_format(name="safetensors"))
    status = main(["export", str(folder / "run"), str(folder / "out"), "--to", "memmap", "--exclude", "special"])
    kept = exports.column(folder / "run", "flags") & 2 == 0
    assert status == (0 if kept.any() else 2)
    if kept.any():
        shards = len(list((folder / "out" / "layer_2_out").glob("*.memmap")))
        assert shards == 3 - len(set(empty))
        ids = [np.load(folder / "out" / "columns" / f"shard_{shard}.npz")["token_ids"] for shard in range(shards)]
        assert np.concatenate(ids).tolist() == exports.column(folder / "run", "token_ids")[kept].tolist()


def test_chunks_from_afar_come_in_their_order(
    tmp_path: Path, gcs: FakeGcs, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(source, "_CHUNK_BYTES", 1)  # a token each, several read at once
    outputs.write(tmp_path / "run", outputs.three_shards(), outputs.shard_format(name="safetensors"))
    for path in (path for path in (tmp_path / "run").rglob("*") if path.is_file()):
        gcs.put(BUCKET, f"run/{path.relative_to(tmp_path / 'run').as_posix()}", path.read_bytes())
    flags = ["--to", "memmap", "--exclude", "special"]
    exports.told(capsys, f"gs://{BUCKET}/run", tmp_path / "far", *flags)
    exports.told(capsys, tmp_path / "run", tmp_path / "near", *flags)
    far, near = exports.contents(tmp_path / "far"), exports.contents(tmp_path / "near")
    del far["layertap_export.json"], near["layertap_export.json"]  # tells where it is from
    assert far == near
