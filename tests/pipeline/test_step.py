"""The compiled step gives the same activations, in whichever way they come to the host."""

import dataclasses
import threading
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gpus import lowered_for_gpu

from layertap.core.taps import SITES, Tap
from layertap.model import weights
from layertap.model.attention_gpu import attend_triton
from layertap.model.attention_tpu import attend_splash
from layertap.model.checkpoint import open_checkpoint
from layertap.pipeline import backend
from layertap.pipeline.step import StepProgram, plan_for, resolve_taps, transfer_dtype

FLOAT32 = np.dtype(np.float32)


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> weights.Decoder:
    return weights.load(open_checkpoint(str(tiny_model)), 2, jnp.float32)


def _arrays() -> tuple[np.ndarray, np.ndarray]:
    tokens = np.random.default_rng(0).integers(0, 500, (2, 512), dtype=np.int32)
    seg_start = np.zeros((2, 512), np.int32)
    seg_start[:, 200:] = 200
    return tokens, seg_start


def test_what_is_moved_to_pinned_memory_is_the_same(model: weights.Decoder) -> None:
    """This is the way on GPU.

    tests/plan compiles what TPU programs offload by themselves; no CPU runs it.
    """
    plan = plan_for("cpu", FLOAT32)
    taps = resolve_taps((), SITES, 2)
    plain, other = (StepProgram(model, taps, chosen) for chosen in (plan, dataclasses.replace(plan, outputs="moved")))
    flight = other.dispatch(model, *_arrays())
    assert {output.sharding.memory_kind for output in flight} == {"pinned_host"}
    expected, found = plain.harvest(plain.dispatch(model, *_arrays())), other.harvest(flight)
    assert set(found) == set(taps)
    for tap in taps:
        for row in (0, 1):
            np.testing.assert_array_equal(found[tap][row], expected[tap][row])


def test_a_program_is_compiled_once_and_ahead(model: weights.Decoder) -> None:
    program = StepProgram(model, (Tap(0, "residual"),), plan_for("cpu", FLOAT32))
    ahead = program.compile((2, 512))
    program.dispatch(model, *_arrays())
    assert program.compile((2, 512)) is ahead


@pytest.mark.parametrize(("platform", "attend"), [("tpu", attend_splash), ("gpu", attend_triton)])
def test_each_accelerator_has_its_kernel(platform: str, attend: object) -> None:
    assert plan_for(platform, FLOAT32).attend is attend


@pytest.mark.parametrize("has", [True, False])
def test_processors_without_bfloat16_products_get_wider_kernels(monkeypatch: pytest.MonkeyPatch, has: bool) -> None:
    monkeypatch.setattr(backend, "multiplies_bfloat16", lambda: has)
    assert plan_for("cpu", FLOAT32).widen is not has
    assert ("with bfloat16" in backend.description()["device"]) is has  # and so in the fingerprint
    assert not plan_for("gpu", FLOAT32).widen


def test_what_is_moved_is_the_narrower_of_compute_and_storage() -> None:
    assert transfer_dtype(jnp.bfloat16, FLOAT32) == jnp.bfloat16
    assert transfer_dtype(jnp.float32, jnp.bfloat16) == jnp.bfloat16
    assert transfer_dtype(jnp.float32, np.float16) == FLOAT32


def test_a_whole_step_lowers_for_a_gpu(model: weights.Decoder) -> None:
    taps, plan = resolve_taps((), SITES, 2), plan_for("gpu", np.dtype(jnp.bfloat16))
    numbers = jax.ShapeDtypeStruct((2, 512), jnp.int32)
    abstract = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), model)
    lowered = lowered_for_gpu(
        lambda model, tokens, starts: model(tokens, starts, taps=taps, plan=plan), abstract, numbers, numbers
    )
    assert lowered.count("attend_packed") >= 2


def test_threads_that_compile_end_when_the_program_is_closed(model: weights.Decoder, monkeypatch) -> None:
    threads: set[threading.Thread] = set()
    monkeypatch.setattr(StepProgram, "lower_and_compile", lambda *_: threads.add(threading.current_thread()))
    program = StepProgram(model, (Tap(0, "residual"),), plan_for("cpu", FLOAT32))
    for shape in ((1, 512), (1, 1024), (2, 512)):
        program.compile(shape).result()
    program.close()
    assert threads
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
