"""What `load` puts into the model, compared with the tensors in the files; and what it refuses."""

import shutil
import threading
from concurrent.futures import CancelledError
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from flax import nnx

from layertap.demo.checkpoint import write_checkpoint
from layertap.errors import ModelError
from layertap.model import weights
from layertap.model.checkpoint import Tensor, open_checkpoint
from layertap.model.config import published_config

DTYPES = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(ml_dtypes.bfloat16)}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory) -> dict[tuple[str, bool], Path]:
    """Checkpoints, by their stored dtype and by whether the weights are in several files. Tests
    only read them.
    """
    folder = tmp_path_factory.mktemp("checkpoints")
    made = {(dtype, split): folder / f"{dtype}-{split}" for dtype in DTYPES for split in (False, True)}
    for (dtype, split), path in made.items():
        write_checkpoint(path, dtype=dtype, max_file_bytes=100_000 if split else None)
    return made


@pytest.fixture
def own(checkpoints, tmp_path) -> Path:
    """A checkpoint in one float32 file, which tests may damage."""
    return shutil.copytree(checkpoints["float32", False], tmp_path / "own")


def stored_tensors(folder: Path) -> dict[str, np.ndarray]:
    files = sorted(folder.glob("*.safetensors"))
    return {name: tensor for path in files for name, tensor in safetensors.numpy.load_file(path).items()}


def rewrite(folder: Path, changes: dict[str, np.ndarray | None]) -> None:
    """Replace tensors, or remove those that are None."""
    tensors = {name: tensor for name, tensor in {**stored_tensors(folder), **changes}.items() if tensor is not None}
    safetensors.numpy.save_file(tensors, folder / "model.safetensors")


def loaded(folder: Path, num_layers: int, dtype) -> dict[str, jax.Array]:
    model = weights.load(open_checkpoint(str(folder)), num_layers, dtype)
    return {".".join(map(str, path)): variable.get_value() for path, variable in nnx.to_flat_state(nnx.state(model))}


def expected(folder: Path, num_layers: int) -> dict[str, np.ndarray]:
    """Every parameter, put together from the stored tensors by hand, in the dtype they are stored
    in.
    """
    stored = stored_tensors(folder)
    parameters = {"embedding": stored["model.embed_tokens.weight"]}
    for i in range(num_layers):
        layer = {name.removeprefix(f"model.layers.{i}."): tensor for name, tensor in stored.items()}
        attention, mlp = "self_attn.{}_proj.{}".format, "mlp.{}_proj.weight".format
        parameters |= {
            f"layers.{i}.attention_norm.scale": layer["input_layernorm.weight"],
            f"layers.{i}.attention.qkv.kernel": np.vstack([layer[attention(x, "weight")] for x in "qkv"]).T,
            f"layers.{i}.attention.qkv.bias": np.hstack([layer[attention(x, "bias")] for x in "qkv"]),
            f"layers.{i}.attention.out.kernel": layer[attention("o", "weight")].T,
            f"layers.{i}.mlp_norm.scale": layer["post_attention_layernorm.weight"],
            f"layers.{i}.mlp.gate_up.kernel": np.vstack([layer[mlp("gate")], layer[mlp("up")]]).T,
            f"layers.{i}.mlp.down.kernel": layer[mlp("down")].T,
        }
    return parameters


def is_float32(name: str) -> bool:
    return name.endswith((".bias", ".scale"))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("split", [False, True], ids=["one file", "several files"])
@pytest.mark.parametrize("stored", DTYPES)
def test_every_parameter_is_what_the_file_says(checkpoints, stored, split, dtype):
    folder = checkpoints[stored, split]
    truth, found = expected(folder, 4), loaded(folder, 4, DTYPES[dtype])
    assert found.keys() == truth.keys()
    for name, parameter in found.items():
        wanted = jnp.asarray(truth[name]).astype(jnp.float32 if is_float32(name) else DTYPES[dtype])
        assert parameter.dtype == wanted.dtype, name
        np.testing.assert_array_equal(parameter, wanted, err_msg=name)


def test_half_precision_is_read_too(own):
    rewrite(own, {name: tensor.astype(np.float16) for name, tensor in stored_tensors(own).items()})
    truth, found = expected(own, 1), loaded(own, 1, jnp.bfloat16)
    for name, parameter in found.items():
        wanted = jnp.asarray(truth[name]).astype(jnp.float32 if is_float32(name) else jnp.bfloat16)
        np.testing.assert_array_equal(parameter, wanted, err_msg=name)


def test_files_without_a_needed_tensor_need_not_be_there(checkpoints, tmp_path):
    folder = shutil.copytree(checkpoints["bfloat16", True], tmp_path / "own")
    truth = expected(folder, 1)
    needed = set(open_checkpoint(str(folder)).tensor_files(weights.tensor_names(published_config("0.5b"), 1)).values())
    others = set(folder.glob("*.safetensors")) - needed
    assert others
    for path in others:
        path.unlink()
    np.testing.assert_array_equal(loaded(folder, 1, jnp.bfloat16)["embedding"], truth["embedding"])


def test_the_table_names_every_tensor_but_the_final_norm(checkpoints):
    stored = stored_tensors(checkpoints["bfloat16", False])
    assert sorted(weights.tensor_names(published_config("0.5b"), 4)) == sorted(stored.keys() - {"model.norm.weight"})


def test_loading_that_is_abandoned_reads_no_further_parameter(checkpoints, monkeypatch):
    abandoned, reads, read = threading.Event(), [], Tensor.read

    def read_and_abandon(self, *index):
        reads.append(self.name)
        abandoned.set()
        return read(self, *index)

    monkeypatch.setattr(Tensor, "read", read_and_abandon)
    checkpoint = open_checkpoint(str(checkpoints["bfloat16", False]))
    with pytest.raises(CancelledError):
        weights.load(checkpoint, 4, jnp.bfloat16, None, abandoned)
    assert len(reads) <= 4 * 3  # each of the four threads ends its parameter, of at most three tensors
    assert len(weights.tensor_names(published_config("0.5b"), 4)) == 49
    assert not any(thread.name.startswith("read-weights") for thread in threading.enumerate())


def test_all_mismatches_are_in_one_error(own):
    rewrite(
        own,
        {
            "model.layers.0.mlp.down_proj.weight": np.zeros((64, 7), np.float32),
            "model.layers.1.input_layernorm.weight": np.zeros(63, np.float32),
            "model.layers.1.self_attn.o_proj.weight": np.zeros((64, 64), np.int8),
            "model.layers.1.self_attn.k_proj.bias": None,
        },
    )
    with pytest.raises(ModelError) as caught:
        loaded(own, 2, jnp.float32)
    heading, *lines = str(caught.value).splitlines()
    assert heading == f"{own}: weights do not fit config.json:"
    assert sorted(lines) == [
        "  model.layers.0.mlp.down_proj.weight has shape (64, 7), config.json implies (64, 160)",
        "  model.layers.1.input_layernorm.weight has shape (63,), config.json implies (64,)",
        "  model.layers.1.self_attn.k_proj.bias is missing",
        "  model.layers.1.self_attn.o_proj.weight is stored as I8, not as one of BF16, F16, F32",
    ]


def test_keys_and_values_that_only_together_have_the_right_size_are_refused(own):
    key, value = (f"model.layers.0.self_attn.{x}_proj.bias" for x in "kv")
    rewrite(own, {key: np.zeros(16, np.float32), value: np.zeros(48, np.float32)})
    with pytest.raises(ModelError, match=rf"(?s){key} has shape \(16,\).*{value} has shape \(48,\)"):
        loaded(own, 1, jnp.float32)


def test_of_many_mismatches_the_first_twenty_are_named(own):
    rewrite(own, dict.fromkeys(weights.tensor_names(published_config("0.5b"), 4)))
    with pytest.raises(ModelError) as caught:
        loaded(own, 4, jnp.float32)
    _, *lines, last = str(caught.value).splitlines()
    assert len(lines) == 20
    assert last == "  and 29 more"


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16, np.float32])
@pytest.mark.parametrize("shape", [(1, 3), (64, 5), (130, 7)])
def test_a_transpose_has_every_value_in_its_place(dtype, shape) -> None:
    """Rows that end inside a block, and columns of a larger matrix, as a device of a slice has."""
    values = np.arange(2 * shape[0] * shape[1]).reshape(shape[0], -1).astype(dtype)
    for own in (values, values[:, shape[1] :]):
        turned = weights.transpose(own)
        assert turned.flags.c_contiguous
        assert turned.dtype == dtype
        assert np.array_equal(turned, own.T)
