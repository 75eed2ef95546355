"""Checkpoints in all published layouts: what transformers loads, we load with the same numbers, or
refuse in one sentence.
"""

import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from layertap.demo.checkpoint import write_checkpoint
from layertap.errors import ModelError
from layertap.model import weights
from layertap.model.checkpoint import open_checkpoint

INDEX = "model.safetensors.index.json"
Tensors = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sound")
    write_checkpoint(folder, "tiny", dtype="float32")
    return folder


@pytest.fixture
def own(sound: Path, tmp_path: Path) -> Path:
    return shutil.copytree(sound, tmp_path / "own")


def loaded(folder: Path) -> np.ndarray:
    """Something of every parameter of two layers."""
    model = weights.load(open_checkpoint(str(folder)), 2, jnp.float32)
    return np.concatenate([np.asarray(leaf).ravel()[:64] for leaf in jax.tree.leaves(model)])


def rewrite(folder: Path, tensors: Tensors) -> None:
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def read(folder: Path) -> Tensors:
    return load_file(folder / "model.safetensors")


def cut(folder: Path, *, index: bool) -> None:
    """In two files, with an index or without."""
    tensors = read(folder)
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    places = {}
    for number, part in enumerate((names[:20], names[20:]), 1):
        file = f"model-0000{number}-of-00002.safetensors"
        save_file({name: tensors[name] for name in part}, folder / file, metadata={"format": "pt"})
        places |= dict.fromkeys(part, file)
    if index:
        (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": places}))


@pytest.mark.parametrize("prefix", ["", "model.language_model.", "language_model.model.", "language_model."])
def test_names_of_the_bare_decoder_and_of_wrappers(own: Path, sound: Path, prefix: str) -> None:
    rewrite(own, {prefix + name.removeprefix("model."): tensor for name, tensor in read(own).items()})
    np.testing.assert_array_equal(loaded(own), loaded(sound))


def test_tied_embeddings_that_are_there_as_the_head_alone(own: Path, sound: Path) -> None:
    tensors = read(own)
    tensors["lm_head.weight"] = tensors.pop("model.embed_tokens.weight")
    rewrite(own, tensors)
    np.testing.assert_array_equal(loaded(own), loaded(sound))
    config = json.loads((own / "config.json").read_text())
    (own / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": False}))
    with pytest.raises(ModelError, match=r"model\.embed_tokens\.weight is missing"):
        loaded(own)


@pytest.mark.parametrize("index", [True, False])
def test_several_files_with_an_index_and_without(own: Path, sound: Path, index: bool) -> None:
    cut(own, index=index)
    np.testing.assert_array_equal(loaded(own), loaded(sound))


@pytest.mark.parametrize("gone", [False, True])
def test_a_whole_file_counts_before_an_old_index(own: Path, sound: Path, gone: bool) -> None:
    """As in transformers, also where the index names files that are gone."""
    tensors = read(own)
    cut(own, index=True)
    rewrite(own, {name: tensor * 2 for name, tensor in tensors.items()})
    if gone:
        for path in own.glob("model-*"):
            path.unlink()
    np.testing.assert_array_equal(loaded(own), 2 * loaded(sound))


def test_files_that_an_index_names_and_that_are_gone(own: Path) -> None:
    cut(own, index=True)
    (own / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(ModelError, match=r"model-00002-of-00002\.safetensors: no such file"):
        loaded(own)


def test_pickled_weights_are_named_with_the_way_out(own: Path) -> None:
    (own / "model.safetensors").rename(own / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"pytorch_model\.bin is there: save the model once more with transformers"):
        loaded(own)


def test_tensors_that_zero_3_left_empty(own: Path) -> None:
    rewrite(own, {name: np.zeros(0, np.float32) if "mlp" in name else tensor for name, tensor in read(own).items()})
    with pytest.raises(ModelError, match=r"gate_proj\.weight is empty: saved under DeepSpeed ZeRO-3"):
        loaded(own)


def test_an_adapter_beside_a_model_is_not_ignored(own: Path) -> None:
    (own / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match="has an adapter beside the model"):
        open_checkpoint(str(own))
