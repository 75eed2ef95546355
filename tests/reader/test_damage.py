"""Files that are not what they should be, and pickles that want to run something."""

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import outputs
import pytest
import shards

import layertap
from layertap.errors import DamageError

FIRST = "shard_0001.safetensors"


@pytest.fixture
def tensors(tmp_path: Path) -> Path:
    outputs.write(tmp_path, outputs.three_shards(), outputs.shard_format(name="safetensors"))
    return tmp_path


@pytest.fixture
def pickles(tmp_path: Path) -> Path:
    outputs.write(tmp_path, outputs.three_shards(), outputs.shard_format(compress=False))
    return tmp_path


class _Runs:
    """Pickled as a call of `function`."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self._call = function, arguments

    def __reduce__(self) -> Any:
        return self._call


def _system(mark: Path) -> bytes:
    return pickle.dumps(_Runs(os.system, f"touch {mark}"))


def _eval(mark: Path) -> bytes:
    return pickle.dumps(_Runs(eval, f"__import__('pathlib').Path({str(mark)!r}).touch()"))


def _in_a_sample(mark: Path) -> bytes:
    sample = {"sample_idx": 0, "activation": _Runs(os.system, f"touch {mark}")}
    return pickle.dumps({0: [sample], 2: [sample]})


def _getattr(mark: Path) -> bytes:
    return pickle.dumps(_Runs(getattr, _Runs(__import__, "os"), "system"))


def _numpy_reconstruct(mark: Path) -> bytes:
    return pickle.dumps({0: [np.array([_Runs(os.system, f"touch {mark}")], object)]})


def _memmap(mark: Path) -> bytes:
    return pickle.dumps(_Runs(np.memmap, str(mark), "u1", "w+", 0, 8))


def _dotted(mark: Path) -> bytes:
    return (
        b"\x80\x04\x8c\x05numpy\x8c\x0cf2py.os.system\x93\x8c"
        + bytes([len(f"touch {mark}")])
        + (f"touch {mark}".encode() + b"\x85R.")
    )


def _wild_pointer(mark: Path) -> bytes:
    return pickle.dumps(_Runs(np.ndarray, (1 << 40,), "<f4", bytearray(4)))


def _strides(mark: Path) -> bytes:
    return pickle.dumps(_Runs(np.ndarray, (4, 4), "<f4", bytearray(64), 0, (1 << 30, 4)))


@pytest.mark.parametrize(
    "hostile",
    [_system, _eval, _in_a_sample, _getattr, _numpy_reconstruct, _memmap, _dotted, _wild_pointer, _strides],
)
def test_a_hostile_pickle_runs_nothing(pickles: Path, tmp_path: Path, hostile: Callable[[Path], bytes]) -> None:
    mark = tmp_path / "mark"
    (pickles / "shard_0001.pkl").write_bytes(hostile(mark))
    outputs.believe(pickles, "shard_0001.pkl")
    dataset = layertap.ActivationDataset(pickles)
    with pytest.raises(DamageError, match=r"shard_0001\.pkl: cannot be read as a shard"):
        dataset[0].activation(0)
    assert not mark.exists()


def test_the_tricks_would_work_on_plain_pickle(tmp_path: Path) -> None:
    for number, hostile in enumerate((_system, _eval, _in_a_sample, _numpy_reconstruct, _memmap)):
        mark = tmp_path / str(number)
        pickle.loads(hostile(mark))
        assert mark.exists(), hostile


def test_a_missing_file_is_named(tensors: Path) -> None:
    (tensors / FIRST).unlink()
    with pytest.raises(DamageError, match=r"/shard_0001\.safetensors: missing"):
        _ = layertap.ActivationDataset(tensors)[0].sample_idx


def test_a_truncated_file_is_named(tensors: Path) -> None:
    path = tensors / FIRST
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DamageError, match=r"shard_0001\.safetensors: has \d+ bytes, should have \d+"):
        _ = layertap.ActivationDataset(tensors)[0].sample_idx


@pytest.mark.parametrize(
    ("other", "what"),
    [("0002", r"residual.0 is float32 \[7, 4\], should be"), ("0003", "holds samples 4 to 5, should hold 0 to 1")],
)
def test_another_shard_in_its_place_is_named(tensors: Path, other: str, what: str) -> None:
    (tensors / FIRST).write_bytes((tensors / FIRST.replace("0001", other)).read_bytes())
    outputs.believe(tensors, FIRST)
    with pytest.raises(DamageError, match=what):
        layertap.ActivationDataset(tensors)[0].activation(0)


def _lose_a_sample(content: dict[int, Any]) -> None:
    content[2].pop()


def _swap_samples(content: dict[int, Any]) -> None:
    content[2].reverse()


def _cut_an_activation(content: dict[int, Any]) -> None:
    content[2][0]["activation"] = content[2][0]["activation"][:-1]


@pytest.mark.parametrize("edit", [_lose_a_sample, _swap_samples, _cut_an_activation])
def test_layers_of_a_pickle_that_disagree_are_named(pickles: Path, edit: Callable[[dict[int, Any]], None]) -> None:
    outputs.rewrite(pickles, "shard_0001.pkl", edit)
    with pytest.raises(DamageError, match=r"shard_0001\.pkl: layer 2( holds other samples|, sample 0: activation is)"):
        layertap.ActivationDataset(pickles)[0].activation(0)


def test_a_pickle_of_another_shard_is_named(pickles: Path) -> None:
    outputs.dump(pickles / "shard_0001.pkl", shards.read(pickles / "shard_0003.pkl"))
    outputs.believe(pickles, "shard_0001.pkl")
    with pytest.raises(DamageError, match="holds samples 4 to 5, should hold 0 to 1"):
        layertap.ActivationDataset(pickles)[0].activation(0)


def test_a_damaged_manifest_is_named(tensors: Path) -> None:
    document = json.loads((tensors / "metadata.json").read_text())
    (tensors / "metadata.json").write_text(json.dumps(document | {"taps": "all"}))
    with pytest.raises(DamageError, match=r"metadata\.json: a field is missing or damaged"):
        layertap.ActivationDataset(tensors)
