"""Compiled steps, shared by all tests of a process: equal programs are compiled once, not once a
test.

Most tests that run the tiny model run it in one of a few shapes, and compiling (or tracing and
reading the compile cache) took more of their time than computing. What is shared is the executable,
which holds no weights and no state; what decides it is its key: shapes, dtypes and placement of the
model, its static fields, taps, plan and step.
"""

from collections.abc import Iterator
from typing import Any

import jax
import pytest

from layertap.pipeline.step import StepProgram


@pytest.fixture(scope="session", autouse=True)
def compiled_once() -> Iterator[None]:
    compile_anew = StepProgram.lower_and_compile
    programs: dict[Any, Any] = {}

    def compile_once(self: StepProgram, shape: tuple[int, int]) -> Any:
        leaves, structure = jax.tree.flatten(self._abstract)
        described = tuple((leaf.shape, leaf.dtype, leaf.sharding) for leaf in leaves)
        key = (shape, self._taps, self._plan, self._hosts, structure, described)
        if key not in programs:
            programs[key] = compile_anew(self, shape)
        return programs[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StepProgram, "lower_and_compile", compile_once)
        yield
