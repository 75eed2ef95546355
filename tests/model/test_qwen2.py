"""Every layer and site against transformers, and packed against alone."""

from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path

import huggingface
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from layertap.core.taps import SITES, Tap
from layertap.demo.checkpoint import write_checkpoint
from layertap.extract.packing import Placement, Step, batch_arrays
from layertap.extract.step import StepProgram, resolve_taps, run_step
from layertap.model import weights
from layertap.model.attention import Attend, attend_dense, attend_flash
from layertap.model.checkpoint import open_checkpoint
from layertap.model.config import Qwen2Config
from layertap.model.qwen2 import ForwardPlan

_LIKE_0_5B = Qwen2Config(
    hidden_size=896,
    intermediate_size=1216,
    num_hidden_layers=3,
    num_attention_heads=14,
    num_key_value_heads=2,
    head_dim=64,
    vocab_size=1024,
    rms_norm_eps=1e-6,
    rope_theta=1e6,
    tie_word_embeddings=True,
)


@dataclass(frozen=True)
class _Case:
    config: Qwen2Config
    max_file_bytes: int | None = None


CASES = {
    "like-0.5b": _Case(_LIKE_0_5B),
    "like-7b": _Case(
        replace(
            _LIKE_0_5B,
            hidden_size=3584,
            intermediate_size=2368,
            num_hidden_layers=2,
            num_attention_heads=28,
            num_key_value_heads=4,
            head_dim=128,
            tie_word_embeddings=False,
        )
    ),
    "several-files": _Case(
        replace(_LIKE_0_5B, hidden_size=256, num_attention_heads=4, num_hidden_layers=4), max_file_bytes=4_000_000
    ),
    "one-key-per-query": _Case(
        replace(_LIKE_0_5B, hidden_size=256, num_attention_heads=4, num_key_value_heads=4, rms_norm_eps=1e-5)
    ),
    "explicit-head-dim": _Case(replace(_LIKE_0_5B, hidden_size=256, num_attention_heads=4, head_dim=32)),
    "math-theta": _Case(replace(_LIKE_0_5B, hidden_size=128, num_attention_heads=2, rope_theta=1e4)),
}


# These two are enough to find what a change broke; all of them in `make test-slow`.
QUICK = ("like-0.5b", "several-files")


@pytest.fixture(
    scope="module", params=[name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in CASES]
)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    case = CASES[request.param]
    path = tmp_path_factory.mktemp(request.param)
    write_checkpoint(path, case.config, dtype="float32", max_file_bytes=case.max_file_bytes)
    assert (len(list(path.glob("*.safetensors"))) > 1) == (case.max_file_bytes is not None)
    return path


def random_ids(count: int, vocabulary: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, vocabulary, count, dtype=np.int32)


def plan(attend: Attend = attend_flash) -> ForwardPlan:
    """Activations as float32, whatever the compute dtype: they are rounded where a test says so."""
    return ForwardPlan(np.dtype(np.float32), attend)


@cache
def truth_of(folder: Path, seed: int, dtype: str = "float32") -> dict[Tap, np.ndarray]:
    """What transformers gives for 700 random tokens."""
    return huggingface.activations(folder, random_ids(700, 1024, seed), dtype)


def run(
    folder: Path, ids: np.ndarray, dtype: str = "float32", attend: Attend = attend_flash, *, widen: bool = False
) -> dict[Tap, np.ndarray]:
    """One sequence alone in a row, padded to whole blocks."""
    checkpoint = open_checkpoint(str(folder))
    layers = checkpoint.config.num_hidden_layers
    model = weights.load(checkpoint, layers, jnp.dtype(dtype))
    program = StepProgram(model, resolve_taps((), SITES, layers), replace(plan(attend), widen=widen))
    length = -(-len(ids) // 256) * 256
    step = Step(1, length, (Placement(0, 0, 0, len(ids)),))
    arrays = program.harvest(program.dispatch(model, *batch_arrays(step, [ids])))
    return {tap: value[0][: len(ids)] for tap, value in arrays.items()}


@pytest.mark.parametrize("attend", [attend_flash, pytest.param(attend_dense, marks=pytest.mark.slow)])
def test_float32_is_within_1e_4_of_transformers_at_every_layer_and_site(folder: Path, attend: Attend) -> None:
    truth = truth_of(folder, seed=1)
    values = run(folder, random_ids(700, 1024, seed=1), attend=attend)
    assert set(values) == set(truth)
    worst = {tap: huggingface.relative_errors(values[tap], truth[tap]).max() for tap in truth}
    assert max(worst.values()) <= 1e-4, worst


@pytest.mark.parametrize("widen", [False, True])
def test_bfloat16_is_no_further_from_float32_than_transformers_in_bfloat16(folder: Path, widen: bool) -> None:
    ids = random_ids(700, 1024, seed=1)
    truth, theirs = truth_of(folder, seed=1), truth_of(folder, seed=1, dtype="bfloat16")
    ours = {
        tap: value.astype(jnp.bfloat16) for tap, value in run(folder, ids, "bfloat16", widen=widen).items()
    }  # as they are stored
    mean_ours = {tap: huggingface.relative_errors(ours[tap], truth[tap]).mean() for tap in truth}
    mean_theirs = {tap: huggingface.relative_errors(theirs[tap], truth[tap]).mean() for tap in truth}
    further = {tap: (mean_ours[tap], mean_theirs[tap]) for tap in truth if mean_ours[tap] > mean_theirs[tap]}
    assert not further


def test_widened_bfloat16_weights_give_what_float32_gives(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, replace(_LIKE_0_5B, hidden_size=128, num_attention_heads=2), dtype="bfloat16")
    ids = random_ids(256, 1024)
    truth, values = run(tmp_path, ids), run(tmp_path, ids, "bfloat16", widen=True)
    rounded = run(tmp_path, ids, "bfloat16")
    for tap in truth:
        assert huggingface.relative_errors(values[tap], truth[tap]).max() < 1e-5
        assert huggingface.relative_errors(rounded[tap], truth[tap]).max() > 1e-4


@pytest.mark.parametrize(
    "forgotten", ["input_layernorm", "post_attention_layernorm", "q_proj.bias", "k_proj.bias", "v_proj.bias"]
)
def test_no_norm_or_bias_could_be_forgotten_unnoticed(tmp_path: Path, forgotten: str) -> None:
    """The parity tests see nothing where random weights leave norms at one and biases at zero; ours must not."""
    write_checkpoint(tmp_path, replace(_LIKE_0_5B, hidden_size=128, num_attention_heads=2), dtype="float32")
    ids = random_ids(64, 1024)
    before = run(tmp_path, ids)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    for name in [name for name in tensors if forgotten in name]:
        tensors[name] = np.zeros_like(tensors[name]) if "bias" in name else np.ones_like(tensors[name])
    save_file(tensors, path, metadata={"format": "pt"})
    after = run(tmp_path, ids)
    # Softmax does not see what is added to all keys, but rotation makes even the key bias differ by position.
    assert huggingface.relative_errors(after[Tap(2, "residual")], before[Tap(2, "residual")]).max() > 1e-3


def test_each_site_is_as_wide_as_the_config_says() -> None:
    taps, numbers = resolve_taps((), SITES, 2), jax.ShapeDtypeStruct((1, 8), jnp.int32)
    model = weights.abstract_model(_LIKE_0_5B, 2, jnp.float32)
    outputs = jax.eval_shape(partial(run_step, taps=taps, plan=plan()), model, numbers, numbers)
    assert [output.shape[2] for output in outputs] == [_LIKE_0_5B.width(tap.site) for tap in taps]


def test_a_token_knows_its_position(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, replace(_LIKE_0_5B, hidden_size=128, num_attention_heads=2), dtype="float32")
    one, other = random_ids(2, 1024)
    first = run(tmp_path, np.array([one, other, other], np.int32))[Tap(0, "attn")]
    second = run(tmp_path, np.array([other, one, other], np.int32))[Tap(0, "attn")]
    assert huggingface.relative_errors(first[2:], second[2:]).min() > 1e-3


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of four heads."""
    folder = tmp_path_factory.mktemp("small")
    write_checkpoint(folder, replace(_LIKE_0_5B, hidden_size=256, num_attention_heads=4), dtype="float32")
    return folder


@pytest.mark.parametrize("place", ["first", "middle", "last"])
@pytest.mark.parametrize("row_length", [512, 1024])
def test_packed_equals_alone(small: Path, place: str, row_length: int) -> None:
    folder = small
    sample, *others = (random_ids(count, 1024, seed) for seed, count in enumerate((150, 97, 130)))
    order = {"first": [0, 1, 2], "middle": [1, 0, 2], "last": [1, 2, 0]}[place]
    alone = run(folder, sample)

    ids = [sample, *others]
    starts = np.cumsum([0] + [len(ids[index]) for index in order])
    placements = tuple(
        Placement(index, 1, int(start), len(ids[index])) for index, start in zip(order, starts, strict=False)
    )
    filler = Placement(3, 0, 0, row_length)
    checkpoint = open_checkpoint(str(folder))
    model = weights.load(checkpoint, 3, jnp.float32)
    program = StepProgram(model, resolve_taps((), SITES, 3), plan())
    step = Step(2, row_length, (filler, *placements))
    packed = program.harvest(program.dispatch(model, *batch_arrays(step, [*ids, random_ids(row_length, 1024, 9)])))
    start = placements[order.index(0)].start
    for tap, value in alone.items():
        np.testing.assert_allclose(packed[tap][1][start : start + len(sample)], value, rtol=1e-5, atol=1e-5)


def test_layers_above_the_last_tap_change_nothing(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, replace(_LIKE_0_5B, hidden_size=128, num_attention_heads=2), dtype="float32")
    ids = random_ids(256, 1024)
    whole = run(tmp_path, ids)
    checkpoint = open_checkpoint(str(tmp_path))
    model = weights.load(checkpoint, 2, jnp.float32)
    program = StepProgram(model, (Tap(1, "residual"),), plan())
    arrays = program.harvest(program.dispatch(model, *batch_arrays(Step(1, 256, (Placement(0, 0, 0, 256),)), [ids])))
    np.testing.assert_allclose(arrays[Tap(1, "residual")][0], whole[Tap(1, "residual")], rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_full_0_5b_shape_on_real_prompts(shared_data: Path, tmp_path: Path) -> None:
    """24 layers, 151,936 tokens of vocabulary, three real ARC prompts."""
    from layertap.dataset import read_records
    from layertap.prompts import PromptMaker, load_template, load_tokenizer, parse_grid_encoder

    write_checkpoint(tmp_path, "0.5b", dtype="float32", tokenizer=shared_data / "qwen2.5-tokenizer")
    encoder = parse_grid_encoder("GridShapeEncoder(RowNumberEncoder(MinimalGridEncoder()))")
    template = load_template("output-from-examples-v0", None)
    maker = PromptMaker(load_tokenizer(tmp_path), template, encoder, 1, include_answer=False, seed=42)
    tasks = list(read_records(str(shared_data / "arc-agi-1" / "training.jsonl"), max_tasks=3))
    for sample in maker.make([(0, tasks[0]), (1, tasks[1]), (2, tasks[2])])[:3]:
        truth = huggingface.activations(tmp_path, sample.token_ids)
        values = run(tmp_path, sample.token_ids)
        worst = {tap: huggingface.relative_errors(values[tap], truth[tap]).max() for tap in truth}
        print(sample.task_id, len(sample.token_ids), "tokens, worst relative error", max(worst.values()))
        assert max(worst.values()) <= 1e-4, worst
