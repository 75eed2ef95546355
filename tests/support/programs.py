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
    compile_again = StepProgram.lower_and_compile
    begin_again = StepProgram.lower_and_compile_beginning
    programs: dict[Any, Any] = {}

    def key_of(self: StepProgram, *asked: object) -> Any:
        leaves, structure = jax.tree.flatten(self._abstract)
        described = tuple((leaf.shape, leaf.dtype, leaf.sharding) for leaf in leaves)
        return (asked, self._taps, self._plan, self._hosts, structure, described)

    def compile_once(self: StepProgram, shape: tuple[int, int], prefix: int = 0) -> Any:
        key = key_of(self, shape, prefix)
        if key not in programs:
            programs[key] = compile_again(self, shape, prefix)
        return programs[key]

    def begin_once(self: StepProgram, tokens: int) -> Any:
        key = key_of(self, tokens)
        if key not in programs:
            programs[key] = begin_again(self, tokens)
        return programs[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StepProgram, "lower_and_compile", compile_once)
        patch.setattr(StepProgram, "lower_and_compile_beginning", begin_once)
        yield
