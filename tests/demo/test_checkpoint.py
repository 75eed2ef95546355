import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest
from safetensors import safe_open

from layertap.demo.checkpoint import config_json, write_checkpoint
from layertap.demo.weights import weight_tensors
from layertap.errors import ModelError, PromptError, UsageError
from layertap.model.config import published_config, read_config

SIZES = ["0.5b", "1.5b", "3b", "7b", "14b", "32b", "72b"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    config = write_checkpoint(folder, dtype="float32")
    return folder, config


def stored(folder):
    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="numpy") as file:
            found |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a mapping)
    return found


def test_a_tiny_checkpoint_fits_its_tokenizer(tiny):
    folder, config = tiny
    described = json.loads((folder / "tokenizer.json").read_text())
    tokens = len(described["model"]["vocab"]) + len(described["added_tokens"])
    assert config.vocab_size % 64 == 0
    assert tokens <= config.vocab_size < tokens + 64


def test_the_config_written_is_the_config_returned(tiny):
    folder, config = tiny
    assert read_config(folder) == config


def test_every_tensor_on_the_disk_can_be_made_again_alone(tiny):
    folder, config = tiny
    weights = stored(folder)
    tensors = weight_tensors(config)
    assert weights.keys() == {tensor.name for tensor in tensors}
    assert all(np.array_equal(weights[tensor.name], tensor.array(0, "float32")) for tensor in tensors)


def test_another_process_writes_the_same_bytes(tiny, tmp_path):
    folder, _ = tiny
    command = [sys.executable, "-m", "layertap.demo.checkpoint", tmp_path / "again", "--dtype", "float32"]
    subprocess.run(command, check=True, capture_output=True)
    names = sorted(path.name for path in folder.iterdir())
    assert names == sorted(path.name for path in (tmp_path / "again").iterdir())
    assert all((folder / name).read_bytes() == (tmp_path / "again" / name).read_bytes() for name in names)


def test_large_weights_are_split_under_an_index(tiny, tmp_path):
    folder, _ = tiny
    write_checkpoint(tmp_path, dtype="float32", max_file_bytes=250_000)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    files = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    whole, split = stored(folder), stored(tmp_path)
    assert files == [f"model-{number:05}-of-{len(files):05}.safetensors" for number in range(1, len(files) + 1)]
    assert index["metadata"]["total_size"] == sum(array.nbytes for array in split.values())
    assert whole.keys() == split.keys() == index["weight_map"].keys()
    assert all(np.array_equal(whole[name], split[name]) for name in whole)
    assert len(files) == 4


def test_the_index_says_where_each_tensor_is(tmp_path):
    write_checkpoint(tmp_path, max_file_bytes=125_000)
    places = json.loads((tmp_path / "model.safetensors.index.json").read_text())["weight_map"]
    for path in tmp_path.glob("*.safetensors"):
        with safe_open(path, framework="numpy") as file:
            assert set(file.keys()) == {name for name, place in places.items() if place == path.name}


def test_only_a_tensor_too_large_by_itself_makes_a_file_too_large(tmp_path):
    write_checkpoint(tmp_path, max_file_bytes=30_000)
    for path in tmp_path.glob("*.safetensors"):
        with safe_open(path, framework="numpy") as file:
            sizes = [file.get_tensor(name).nbytes for name in file.keys()]  # noqa: SIM118  (not a mapping)
            assert sum(sizes) <= 30_000 or len(sizes) == 1


def test_weights_that_just_fit_stay_in_one_file(tiny, tmp_path):
    folder, _ = tiny
    total = sum(array.nbytes for array in stored(folder).values())
    write_checkpoint(tmp_path, dtype="float32", max_file_bytes=total)
    assert [path.name for path in tmp_path.glob("model*")] == ["model.safetensors"]


def test_a_byte_less_room_makes_a_second_file(tiny, tmp_path):
    folder, _ = tiny
    total = sum(array.nbytes for array in stored(folder).values())
    write_checkpoint(tmp_path, dtype="float32", max_file_bytes=total - 1)
    assert len(list(tmp_path.glob("*.safetensors"))) == 2


def test_the_files_say_that_they_hold_torch_weights(tiny):
    folder, _ = tiny
    with safe_open(folder / "model.safetensors", framework="numpy") as file:
        assert file.metadata() == {"format": "pt"}


def test_layers_can_be_cut_from_a_published_size(tmp_path):
    shape = dataclasses.replace(published_config("0.5b"), vocab_size=1024)
    assert write_checkpoint(tmp_path, shape, layers=1) == dataclasses.replace(shape, num_hidden_layers=1)
    assert read_config(tmp_path).num_hidden_layers == 1


def test_a_vocabulary_that_does_not_cover_the_tokenizer_is_refused(tmp_path):
    shape = dataclasses.replace(published_config("0.5b"), vocab_size=512)
    with pytest.raises(ModelError, match="vocab_size 512 does not cover the tokenizer's 768 tokens"):
        write_checkpoint(tmp_path, shape)


def test_an_unknown_size_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ModelError, match=r"'9b'"):
        write_checkpoint(tmp_path / "new", "9b")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    "name", ["config.json", "model.safetensors", "model-00001-of-00002.safetensors", "model.safetensors.index.json"]
)
def test_a_folder_that_holds_a_checkpoint_is_left_alone(tmp_path, name):
    (tmp_path / name).write_text("mine")
    with pytest.raises(ModelError, match=f"already holds {name}"):
        write_checkpoint(tmp_path)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["mine"]


@pytest.mark.parametrize("wrong", [{"layers": 0}, {"max_file_bytes": 0}])
def test_numbers_that_make_no_sense_are_refused(tmp_path, wrong):
    with pytest.raises(UsageError, match="at least 1"):
        write_checkpoint(tmp_path, **wrong)


def test_a_tokenizer_is_copied_as_it_is(tiny, tmp_path):
    folder, _ = tiny
    write_checkpoint(tmp_path, tokenizer=folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()


def test_a_tokenizer_may_be_there_already(tmp_path):
    write_checkpoint(tmp_path / "first")
    for name in ("config.json", "model.safetensors"):
        (tmp_path / "first" / name).unlink()
    write_checkpoint(tmp_path / "first", tokenizer=tmp_path / "first")
    write_checkpoint(tmp_path / "second")
    first, second = (sorted(path.read_bytes() for path in (tmp_path / name).iterdir()) for name in ("first", "second"))
    assert first == second


def test_the_real_tokenizer_makes_a_tiny_model_with_a_large_vocabulary(tmp_path, shared_data):
    assert (
        write_checkpoint(tmp_path, tokenizer=shared_data / "qwen2.5-tokenizer").vocab_size == 151_680
    )  # 151,665 ids, rounded up


def test_a_folder_without_a_tokenizer_is_refused(tmp_path):
    with pytest.raises(PromptError, match=r"tokenizer\.json: no such file"):
        write_checkpoint(tmp_path / "new", tokenizer=tmp_path)


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"added_tokens": [], "model": {"vocab": []}}'])
def test_a_tokenizer_of_another_kind_is_refused(tmp_path, content):
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(PromptError, match=r"tokenizer\.json: is not a byte-level BPE tokenizer"):
        write_checkpoint(tmp_path / "new", tokenizer=tmp_path)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_a_config_survives_being_written_and_read(tmp_path, size, dtype):
    (tmp_path / "config.json").write_text(json.dumps(config_json(published_config(size), dtype)))
    assert read_config(tmp_path) == published_config(size)


def test_a_head_of_unusual_width_is_written_and_read(tmp_path):
    unusual = dataclasses.replace(published_config("0.5b"), head_dim=128, rope_theta=1e4)
    (tmp_path / "config.json").write_text(json.dumps(config_json(unusual, "float32")))
    assert read_config(tmp_path) == unusual


def test_the_demo_imports_no_framework():
    script = (
        "import sys, layertap.demo.checkpoint, layertap.demo.tasks;"
        "print(sorted({'jax', 'torch', 'transformers', 'flax'} & sys.modules.keys()))"
    )
    found = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert found.stdout.strip() == "[]"


def test_the_command_line_says_what_is_wrong_and_exits_with_its_status(tmp_path):
    command = [sys.executable, "-m", "layertap.demo.checkpoint", tmp_path / "new", "--size", "9b"]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 2
    assert ended.stderr.startswith("error: no Qwen 2.5 of size '9b'")
