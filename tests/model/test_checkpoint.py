"""Checkpoints in folders: where their files are, what is read from them, and what distinguishes two
of them.
"""

import errno
import json
import os
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from layertap.demo.checkpoint import write_checkpoint
from layertap.errors import ModelError
from layertap.model.checkpoint import Checkpoint, open_checkpoint
from layertap.model.config import published_config
from layertap.model.weights import tensor_names

INDEX = "model.safetensors.index.json"
EMBEDDING = "model.embed_tokens.weight"


@pytest.fixture(scope="module")
def single(tmp_path_factory) -> Path:
    """A checkpoint with its weights in one file. Tests only read it."""
    folder = tmp_path_factory.mktemp("checkpoint") / "single"
    write_checkpoint(folder)
    return folder


@pytest.fixture(scope="module")
def several(tmp_path_factory) -> Path:
    """The same checkpoint with its weights in five files. Tests only read it."""
    folder = tmp_path_factory.mktemp("checkpoint") / "several"
    write_checkpoint(folder, max_file_bytes=100_000)
    return folder


@pytest.fixture
def own_single(single, tmp_path) -> Path:
    return shutil.copytree(single, tmp_path / "own")


def weight_map(folder: Path) -> dict[str, str]:
    return json.loads((folder / INDEX).read_text())["weight_map"]


def identity(folder: Path, num_layers: int = 2) -> str:
    return open_checkpoint(str(folder)).identity(tensor_names(published_config("0.5b"), num_layers))


def flip_bit(path: Path, tensor: str, byte: int) -> None:
    """Change one number of a tensor; `byte` counts from its first one, or back from its end."""
    content = bytearray(path.read_bytes())
    (length,) = struct.unpack("<Q", content[:8])
    begin, end = json.loads(content[8 : 8 + length])[tensor]["data_offsets"]
    content[8 + length + (begin if byte >= 0 else end) + byte] ^= 1
    path.write_bytes(content)


# --- a folder


def test_a_folder_is_read_where_it_is(tmp_path):
    config = write_checkpoint(tmp_path)
    assert open_checkpoint(str(tmp_path)) == Checkpoint(tmp_path, None, config)


def test_a_folder_can_be_given_from_the_home_folder(single, monkeypatch):
    monkeypatch.setenv("HOME", str(single.parent))
    assert open_checkpoint("~/single").folder == single


@pytest.mark.parametrize(
    "path", ["./missing", "/missing", "~/missing", "~nobody-here/missing", "missing", "a/b/c", "models/", "a b/c"]
)
def test_what_is_neither_a_folder_nor_a_hub_id_is_refused_without_asking_the_hub(path):
    with pytest.raises(ModelError, match=rf"--model_path {path}: neither a folder nor a Hub id"):
        open_checkpoint(path)


def test_a_file_is_no_checkpoint_though_its_path_could_be_a_hub_id(single, monkeypatch):
    monkeypatch.chdir(single.parent)
    with pytest.raises(ModelError, match=r"--model_path single/config\.json: neither a folder nor a Hub id"):
        open_checkpoint("single/config.json")


def test_a_folder_has_no_revisions(single):
    with pytest.raises(ModelError, match=r"--revision v1: --model_path .* is a folder, which has no revisions"):
        open_checkpoint(str(single), "v1")


@pytest.mark.parametrize("name", ["access", "stat"])
def test_a_folder_that_may_not_be_read_is_named(single, monkeypatch, name):
    def forbid(path: object, mode: int = 0) -> bool:
        if name == "access":
            return False
        raise PermissionError(errno.EACCES, "Permission denied")

    with monkeypatch.context() as patched:
        patched.setattr(os, name, forbid)
        with pytest.raises(ModelError) as refused:
            open_checkpoint("sub/model" if name == "stat" else str(single))
    assert "this user may not read that folder; change its permissions" in str(refused.value)


def test_weights_that_may_not_be_read_are_named(own_single, monkeypatch):
    (own_single / "model.safetensors").write_bytes(b"")
    monkeypatch.setattr(os, "access", lambda _, mode: mode != os.R_OK)
    with pytest.raises(ModelError, match=r"model\.safetensors: this user may not read that file"):
        open_checkpoint(str(own_single)).tensor_files([EMBEDDING])


def test_every_tensor_of_an_undivided_checkpoint_is_in_its_one_file(single):
    files = open_checkpoint(str(single)).tensor_files(tensor_names(published_config("0.5b"), 4))
    assert files == dict.fromkeys(tensor_names(published_config("0.5b"), 4), single / "model.safetensors")


def test_the_index_says_which_file_holds_a_tensor(several):
    files = open_checkpoint(str(several)).tensor_files(tensor_names(published_config("0.5b"), 4))
    assert files == {name: several / weight_map(several)[name] for name in tensor_names(published_config("0.5b"), 4)}
    assert len(set(files.values())) == 5


def test_tensors_that_the_index_lacks_are_counted_and_named(several):
    absent = [name for name in tensor_names(published_config("0.5b"), 5) if ".4." in name]
    with pytest.raises(ModelError, match=rf"{INDEX}: lacks 12 tensors: {', '.join(absent[:5])}$"):
        open_checkpoint(str(several)).tensor_files(tensor_names(published_config("0.5b"), 5))


@pytest.mark.parametrize("file", ["model.safetensors", "model-00003-of-00005.safetensors"])
def test_a_weight_file_that_is_not_there_is_named(single, several, tmp_path, file):
    own = shutil.copytree(single if (single / file).exists() else several, tmp_path / "own")
    (own / file).rename(own / "pytorch_model.bin")
    with pytest.raises(ModelError, match=rf"own/{file}: no such file; Layertap reads safetensors"):
        open_checkpoint(str(own)).tensor_files(tensor_names(published_config("0.5b"), 4))


@pytest.mark.parametrize(
    "index",
    ["{", "[]", "{}", '{"weight_map": []}', '{"weight_map": {"a": 5}}', '{"weight_map": {"a": "../a.safetensors"}}'],
)
def test_a_malformed_index_is_refused(several, tmp_path, index):
    own = shutil.copytree(several, tmp_path / "own")
    (own / INDEX).write_text(index)
    with pytest.raises(ModelError, match=rf"own/{INDEX}: .*(is not a safetensors index|is not the name of a file)"):
        open_checkpoint(str(own)).tensor_files([EMBEDDING])


# --- tensors


def test_a_part_of_a_tensor_is_read_as_it_is_stored(single):
    stored = safetensors.numpy.load_file(single / "model.safetensors")[EMBEDDING]
    with open_checkpoint(str(single)).open_tensors([EMBEDDING]) as tensors:
        tensor = tensors[EMBEDDING]
        assert (tensor.name, tensor.path, tensor.dtype) == (EMBEDDING, single / "model.safetensors", "BF16")
        assert tensor.shape == stored.shape
        np.testing.assert_array_equal(tensor.read(slice(3, 9), slice(16, 32)), stored[3:9, 16:32])


def test_reading_past_the_end_names_the_tensor(single):
    norm = "model.layers.0.input_layernorm.weight"
    with (
        open_checkpoint(str(single)).open_tensors([norm]) as tensors,
        pytest.raises(ModelError, match=rf"{norm} BF16\[64\] cannot be read"),
    ):
        tensors[norm].read(slice(0, 65))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda _content: b"",
        lambda _content: b"version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 450136\n",
        lambda _content: struct.pack("<Q", 8) + b"not json",
        lambda _content: struct.pack("<Q", 2) + b"[]",
        lambda content: content[:-1],
    ],
    ids=["empty", "git lfs pointer", "header not JSON", "header not an object", "cut short"],
)
def test_what_is_not_whole_safetensors_is_refused(own_single, spoil):
    path = own_single / "model.safetensors"
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(ModelError, match=r"own/model\.safetensors: is not a whole safetensors file .*git lfs pull"):
        identity(own_single)


# --- identity


def test_neither_the_place_nor_the_files_nor_the_order_of_names_count(single, own_single, several):
    assert identity(own_single) == identity(several) == identity(single)
    assert open_checkpoint(str(single)).identity(reversed(tensor_names(published_config("0.5b"), 2))) == identity(
        single
    )


def test_more_layers_have_another_identity(single):
    assert identity(single, 1) != identity(single, 2)


@pytest.mark.parametrize(
    ("name", "byte", "counts"),
    [
        *((name, 0, True) for name in tensor_names(published_config("0.5b"), 2)),
        ("model.layers.1.post_attention_layernorm.weight", -1, True),
        ("model.layers.1.self_attn.q_proj.bias", -1, True),
        ("model.layers.2.input_layernorm.weight", 0, False),
        ("model.norm.weight", 0, False),
    ],
)
def test_all_of_a_vector_and_the_first_number_of_a_matrix_count_below_the_last_tap(
    single, own_single, name, byte, counts
):
    flip_bit(own_single / "model.safetensors", name, byte)
    assert (identity(own_single) != identity(single)) == counts


@pytest.mark.parametrize(
    ("file", "before", "after"),
    [
        ("model.safetensors", b'"BF16"', b' "F16"'),
        ("config.json", b'"rope_theta": 1000000.0', b'"rope_theta": 10000.0'),
    ],
    ids=["dtype", "config"],
)
def test_dtypes_and_the_config_count(single, own_single, file, before, after):
    content = (own_single / file).read_bytes()
    assert before in content
    (own_single / file).write_bytes(content.replace(before, after))
    assert identity(own_single) != identity(single)


def test_there_is_no_identity_without_a_needed_tensor(single):
    with pytest.raises(ModelError, match=r"single: lacks 12 tensors: model\.layers\.4\."):
        identity(single, 5)
