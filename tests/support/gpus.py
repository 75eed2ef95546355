"""Programs lowered for a GPU that this machine does not have."""

import warnings
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import AbstractDevice, AbstractMesh

_H100 = AbstractDevice(device_kind="NVIDIA H100 80GB HBM3", num_cores=132, platform="gpu")


def lowered_for_gpu(function: Callable[..., Any], *arguments: jax.ShapeDtypeStruct) -> str:
    """Return the program's text.

    From JAX 0.11 on, Triton needs to know which card is meant, and JAX warns about its future.
    """
    mesh = AbstractMesh((1,), ("x",), abstract_device=_H100)
    with jax.sharding.use_abstract_mesh(mesh), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The Pallas Triton backend is deprecated", DeprecationWarning)
        return jax.jit(function).trace(*arguments).lower(lowering_platforms=("cuda",)).as_text()
