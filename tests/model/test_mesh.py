"""How a model is cut over devices. tests/pipeline/test_devices.py shows that results are equal."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layertap.errors import UsageError
from layertap.model.config import published_config
from layertap.model.mesh import MeshShape, auto_shape, parse_mesh, partition, weight_bytes
from layertap.model.weights import abstract_model

GB = 10**9


@pytest.mark.parametrize(
    ("text", "shape"),
    [("data=8,fsdp=4", MeshShape(8, 4)), (" fsdp = 2 ", MeshShape(1, 2)), ("data=16", MeshShape(16, 1))],
)
def test_a_mesh_is_read(text: str, shape: MeshShape) -> None:
    assert parse_mesh(text) == shape
    assert parse_mesh(str(shape)) == shape


@pytest.mark.parametrize("text", ["", "8", "data=0", "tensor=2", "data=2,data=2", "data=2;fsdp=2", "data=-1"])
def test_what_is_no_mesh_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="data=8,fsdp=8"):
        parse_mesh(text)


@pytest.mark.parametrize(
    ("size", "devices", "memory", "shape"),
    [
        ("0.5b", 4, 16 * GB, MeshShape(4, 1)),
        ("7b", 8, 16 * GB, MeshShape(2, 4)),
        ("7b", 64, 16 * GB, MeshShape(16, 4)),
        ("72b", 64, 16 * GB, MeshShape(1, 64)),
        ("72b", 64, 32 * GB, MeshShape(2, 32)),
        ("72b", 2, None, MeshShape(2, 1)),
    ],
)
def test_weights_are_cut_only_as_far_as_memory_needs(
    size: str, devices: int, memory: int | None, shape: MeshShape
) -> None:
    config = published_config(size)
    assert (
        auto_shape(devices, weight_bytes(abstract_model(config, config.num_hidden_layers, "bfloat16")), memory) == shape
    )


@given(st.integers(1, 300), st.integers(1, 10**12), st.integers(1, 10**11))
def test_the_automatic_mesh_uses_every_device(devices: int, weights: int, memory: int) -> None:
    assert auto_shape(devices, weights, memory).devices == devices


def test_weight_bytes_are_those_of_the_published_model() -> None:
    # Qwen2.5-0.5B has 494,032,768 parameters, its tied head counted once. Less the final norm;
    # small ones in float32.
    small = 24 * (2 * 896 + 896 + 2 * 128)
    assert weight_bytes(abstract_model(published_config("0.5b"), 24, "bfloat16")) == 2 * (494_032_768 - 896) + 2 * small


def test_norms_and_biases_are_whole_everywhere() -> None:
    assert tuple(partition("layers.0.mlp_norm.scale", (64,))) == ()
    assert tuple(partition("layers.0.mlp.down.kernel", (160, 64))) == ("fsdp",)
    assert tuple(partition("embedding", (768, 64))) == (None, "fsdp")
