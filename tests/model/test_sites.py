"""Each site costs what it needs, and no more; several in one pass equal each alone."""

from dataclasses import replace
from pathlib import Path

import forward
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from layertap.core.taps import SITES, Site, Tap, layers_to_run
from layertap.demo.checkpoint import write_checkpoint
from layertap.model import weights
from layertap.model.attention import attend_dense
from layertap.model.checkpoint import open_checkpoint
from layertap.model.config import published_config
from layertap.model.decoder import ForwardPlan
from layertap.pipeline.step import resolve_taps, run_step

_CONFIG = replace(
    published_config("0.5b"),
    hidden_size=64,
    intermediate_size=160,
    num_hidden_layers=3,
    num_attention_heads=4,
    head_dim=24,
    vocab_size=1024,
)
_PLAN = ForwardPlan(np.dtype(np.float32), attend_dense, token_block=None, terms=None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sites")
    write_checkpoint(path, _CONFIG, dtype="float32")
    return path


def read(folder: Path, *taps: Tap) -> dict[Tap, np.ndarray]:
    """What a run of these taps alone computes for 40 tokens."""
    model = weights.load(open_checkpoint(str(folder)), layers_to_run(taps), jnp.float32)
    ids = jnp.arange(40)[None, :] % 128
    outputs = run_step(model, ids, jnp.zeros_like(ids), taps=taps, plan=_PLAN)
    return {tap: np.asarray(value) for tap, value in zip(taps, outputs, strict=True)}


@pytest.mark.whole
def test_every_site_alone_is_that_of_all_in_one_pass(folder: Path) -> None:
    together = read(folder, *resolve_taps((), SITES, 3))
    for tap, expected in together.items():
        np.testing.assert_allclose(read(folder, tap)[tap], expected, rtol=1e-5, atol=1e-5)
        assert expected.shape[-1] == _CONFIG.width(tap.site)


def test_the_input_of_a_layer_is_the_output_of_the_one_before(folder: Path) -> None:
    together = read(folder, *resolve_taps((), ("residual", "residual_in"), 3))
    for layer in (1, 2):
        np.testing.assert_array_equal(together[Tap(layer, "residual_in")], together[Tap(layer - 1, "residual")])
    both = read(folder, Tap(0, "attn"), Tap(1, "residual_in"))  # layer 0 is the last to run, and wholly
    np.testing.assert_allclose(both[Tap(1, "residual_in")], together[Tap(1, "residual_in")], rtol=1e-5, atol=1e-5)


def test_the_blocks_add_up_to_the_stream(folder: Path) -> None:
    found = read(folder, *resolve_taps((1,), SITES, 3))
    at = {tap.site: value for tap, value in found.items()}
    np.testing.assert_allclose(at["residual_in"] + at["attn"], at["residual_mid"], atol=1e-6)
    np.testing.assert_allclose(at["residual_mid"] + at["mlp"], at["residual"], atol=1e-6)


@pytest.mark.parametrize(
    ("site", "products"),
    [  # qkv; scores and the mixing of values; out; gate and up; down
        ("residual_in", 0), ("attn_in", 0), ("heads", 3), ("attn", 4), ("residual_mid", 4),
        ("mlp_in", 4), ("neurons", 5), ("mlp", 6), ("residual", 6),
    ],
)  # fmt: skip
def test_nothing_is_computed_beyond_what_the_last_tap_needs(site: Site, products: int) -> None:
    for layer in (0, 2):
        taps = (Tap(layer, site),)
        model = weights.abstract_model(_CONFIG, layers_to_run(taps), jnp.float32)
        numbers = jax.ShapeDtypeStruct((1, 16), jnp.int32)
        program = str(jax.make_jaxpr(lambda *given: run_step(*given, taps=taps, plan=_PLAN))(model, numbers, numbers))  # noqa: B023 - called at once
        assert program.count("dot_general") == 6 * layer + products


def test_a_layers_input_needs_no_weight_of_the_layer() -> None:
    assert layers_to_run((Tap(0, "residual_in"),)) == 0
    assert layers_to_run((Tap(2, "residual_in"),)) == 2
    assert layers_to_run((Tap(1, "attn_in"), Tap(2, "residual_in"))) == 2
    assert layers_to_run((Tap(2, "residual_in"), Tap(2, "mlp"))) == 3


def test_the_embeddings_alone_can_be_read(folder: Path) -> None:
    (found,) = read(folder, Tap(0, "residual_in")).values()
    model = weights.load(open_checkpoint(str(folder)), 1, jnp.float32)
    np.testing.assert_array_equal(found[0], np.asarray(model.embedding[...])[np.arange(40)])


def test_packed_equals_alone_at_every_site(folder: Path) -> None:
    """This uses the kernel of CPUs. A sample may begin inside one of its blocks."""
    ids = np.arange(200, dtype=np.int32) % 128
    plan = ForwardPlan(np.dtype(np.float32))
    alone = forward.activations(folder, ids[70:], plan)
    model = weights.load(open_checkpoint(str(folder)), 3, jnp.float32)
    tokens = np.zeros((1, 256), np.int32)
    tokens[0, :200] = ids
    starts = np.arange(256, dtype=np.int32)[None, :].copy()
    starts[0, :70], starts[0, 70:200] = 0, 70
    taps = resolve_taps((), SITES, 3)
    packed = run_step(model, jnp.asarray(tokens), jnp.asarray(starts), taps=taps, plan=plan)
    for tap, value in zip(taps, packed, strict=True):
        np.testing.assert_allclose(np.asarray(value)[0, 70:200], alone[tap], rtol=1e-5, atol=1e-5)
