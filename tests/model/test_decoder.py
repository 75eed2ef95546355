"""Every layer and site against transformers, and packed against alone."""

from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import forward
import huggingface
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from layertap.core.taps import SITES, Site, Tap
from layertap.demo.checkpoint import write_checkpoint
from layertap.model import weights
from layertap.model.attention import Attend, attend_dense, attend_flash
from layertap.model.checkpoint import open_checkpoint
from layertap.model.config import published_config
from layertap.model.decoder import ForwardPlan
from layertap.pipeline.packing import Placement, Step, batch_arrays
from layertap.pipeline.step import StepProgram, resolve_taps, run_step

_LIKE_0_5B = replace(published_config("0.5b"), intermediate_size=1216, num_hidden_layers=3, vocab_size=1024)
_LIKE_7B = replace(published_config("7b"), intermediate_size=2368, num_hidden_layers=2, vocab_size=1024)
_SMALL = replace(_LIKE_0_5B, hidden_size=256, num_attention_heads=4)

SHAPES = {
    "like-0.5b": _LIKE_0_5B,
    "several-files": replace(_SMALL, num_hidden_layers=4),
    "like-7b": _LIKE_7B,
    "one-key-per-query": replace(_SMALL, num_key_value_heads=4, rms_norm_eps=1e-5),
    "explicit-head-dim": replace(_SMALL, head_dim=32),
    "math-theta": replace(_SMALL, rope_theta=1e4),
}
# These two are enough to find what a change broke; all of them in `make test-slow`.
QUICK = ("like-0.5b", "several-files")


@pytest.fixture(
    scope="module", params=[name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in SHAPES]
)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp(request.param)
    several = request.param == "several-files"
    write_checkpoint(path, SHAPES[request.param], dtype="float32", max_file_bytes=4_000_000 if several else None)
    assert (len(list(path.glob("*.safetensors"))) > 1) == several
    return path


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A checkpoint of four heads, which tests may damage."""
    write_checkpoint(tmp_path, _SMALL, dtype="float32")
    return tmp_path


def random_ids(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 1024, count, dtype=np.int32)


def plan(attend: Attend = attend_flash, *, widen: bool = False) -> ForwardPlan:
    """Activations as float32, whatever the compute dtype: they are rounded where a test says so."""
    return ForwardPlan(np.dtype(np.float32), attend, widen=widen)


@cache
def truth_of(folder: Path, dtype: str = "float32") -> dict[Tap, np.ndarray]:
    """What transformers gives for 700 random tokens."""
    return huggingface.activations(folder, random_ids(700, seed=1), dtype)


@pytest.mark.parametrize("attend", [attend_flash, pytest.param(attend_dense, marks=pytest.mark.slow)])
def test_float32_is_within_1e_4_of_transformers_at_every_layer_and_site(folder: Path, attend: Attend) -> None:
    truth = truth_of(folder)
    values = forward.activations(folder, random_ids(700, seed=1), plan(attend))
    assert set(values) == set(truth)
    worst = {tap: huggingface.relative_errors(values[tap], truth[tap]).max() for tap in truth}
    assert max(worst.values()) <= 1e-4, worst


@pytest.mark.whole
@pytest.mark.parametrize("widen", [False, True])
def test_bfloat16_is_no_further_from_float32_than_transformers_in_bfloat16(folder: Path, widen: bool) -> None:
    truth, theirs = truth_of(folder), truth_of(folder, dtype="bfloat16")
    values = forward.activations(folder, random_ids(700, seed=1), plan(widen=widen), "bfloat16")
    ours = {tap: value.astype(jnp.bfloat16) for tap, value in values.items()}  # as they are stored
    mean_ours = {tap: huggingface.relative_errors(ours[tap], truth[tap]).mean() for tap in truth}
    mean_theirs = {tap: huggingface.relative_errors(theirs[tap], truth[tap]).mean() for tap in truth}
    further = {tap: (mean_ours[tap], mean_theirs[tap]) for tap in truth if mean_ours[tap] > mean_theirs[tap]}
    assert not further


@pytest.mark.whole
def test_widened_bfloat16_weights_give_what_float32_gives(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, _SMALL, dtype="bfloat16")
    ids = random_ids(256)
    truth = forward.activations(tmp_path, ids, plan())
    widened = forward.activations(tmp_path, ids, plan(widen=True), "bfloat16")
    rounded = forward.activations(tmp_path, ids, plan(), "bfloat16")
    for tap in truth.keys() - {Tap(0, "residual_in"), Tap(0, "attn_in")}:  # no product comes before these
        assert huggingface.relative_errors(widened[tap], truth[tap]).max() < 1e-5
        assert huggingface.relative_errors(rounded[tap], truth[tap]).max() > 1e-4


@pytest.mark.parametrize(
    "forgotten", ["input_layernorm", "post_attention_layernorm", "q_proj.bias", "k_proj.bias", "v_proj.bias"]
)
def test_no_norm_or_bias_could_be_forgotten_unnoticed(small: Path, forgotten: str) -> None:
    """The parity tests would see no fault in norms of one and biases of zero, so our weights must
    have neither.
    """
    ids = random_ids(64)
    before = forward.activations(small, ids, plan())
    path = small / "model.safetensors"
    tensors = load_file(path)
    for name in [name for name in tensors if forgotten in name]:
        tensors[name] = np.zeros_like(tensors[name]) if "bias" in name else np.ones_like(tensors[name])
    save_file(tensors, path, metadata={"format": "pt"})
    after = forward.activations(small, ids, plan())
    # Softmax does not see what is added to all keys, but rotation makes even the key bias differ by
    # position.
    assert huggingface.relative_errors(after[Tap(2, "residual")], before[Tap(2, "residual")]).max() > 1e-3


def test_each_site_is_as_wide_as_the_config_says() -> None:
    taps, numbers = resolve_taps((), SITES, 2), jax.ShapeDtypeStruct((1, 8), jnp.int32)
    model = weights.abstract_model(_LIKE_0_5B, 2, jnp.float32)
    outputs = jax.eval_shape(partial(run_step, taps=taps, plan=plan()), model, numbers, numbers)
    assert [output.shape[2] for output in outputs] == [_LIKE_0_5B.width(tap.site) for tap in taps]


def test_a_token_knows_its_position(small: Path) -> None:
    one, other = random_ids(2)
    first = forward.activations(small, np.array([one, other, other], np.int32), plan())[Tap(0, "attn")]
    second = forward.activations(small, np.array([other, one, other], np.int32), plan())[Tap(0, "attn")]
    assert huggingface.relative_errors(first[2:], second[2:]).min() > 1e-3


@pytest.mark.parametrize("place", ["first", "middle", "last"])
@pytest.mark.parametrize("row_length", [512, 1024])
def test_packed_equals_alone(small: Path, place: str, row_length: int) -> None:
    ids = [random_ids(count, seed) for seed, count in enumerate((150, 97, 130))]
    order = {"first": [0, 1, 2], "middle": [1, 0, 2], "last": [1, 2, 0]}[place]
    starts = np.cumsum([0] + [len(ids[index]) for index in order])
    placements = [Placement(index, 1, int(starts[i]), len(ids[index])) for i, index in enumerate(order)]
    step = Step(2, row_length, (Placement(3, 0, 0, row_length), *placements))
    model = weights.load(open_checkpoint(str(small)), 3, jnp.float32)
    program = StepProgram(model, resolve_taps((), SITES, 3), plan())
    arrays = batch_arrays(step, [*ids, random_ids(row_length, seed=9)])
    packed = program.harvest(program.dispatch(model, *arrays))
    start = placements[order.index(0)].start
    for tap, value in forward.activations(small, ids[0], plan()).items():
        np.testing.assert_allclose(packed[tap][1][start : start + len(ids[0])], value, rtol=1e-5, atol=1e-5)


def test_layers_above_the_last_tap_change_nothing(small: Path) -> None:
    ids = random_ids(256)
    whole, part = forward.activations(small, ids, plan()), forward.activations(small, ids, plan(), layers=2)
    assert set(part) < set(whole)
    for tap, value in part.items():
        np.testing.assert_allclose(value, whole[tap], rtol=1e-5, atol=1e-5)


@pytest.fixture(scope="module")
def full_shape(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint in the shape of Qwen 2.5 0.5B, with its tokenizer."""
    folder = tmp_path_factory.mktemp("full")
    write_checkpoint(folder, "0.5b", dtype="float32", tokenizer=shared_data / "qwen2.5-tokenizer")
    return folder


@pytest.mark.slow
@pytest.mark.timeout(1800)  # transformers takes minutes beside other work
@pytest.mark.parametrize(
    ("task", "tokens", "sites"),
    [("017c7c7b", 625, SITES), ("007bbfb7", 1123, SITES), ("00d62c1b", 2800, ("residual",))],  # all sites: 6 GB
)
def test_full_0_5b_shape_on_real_prompts(
    full_shape: Path, shared_data: Path, task: str, tokens: int, sites: tuple[Site, ...]
) -> None:
    """24 layers, 151,936 tokens of vocabulary, real ARC prompts."""
    [ids] = forward.arc_prompts(full_shape, shared_data, {task: tokens}).values()
    truth = huggingface.activations(full_shape, ids, sites=sites)
    values = forward.activations(full_shape, ids, plan(), sites=sites)
    worst = {tap: huggingface.relative_errors(values[tap], truth[tap]).max() for tap in truth}
    print(task, len(ids), "tokens, worst relative error", max(worst.values()))
    assert max(worst.values()) <= 1e-4, worst
