"""How far float32 is from float64, compared with transformers in float32: with a massive
activation, and on real weights.

Random weights lack what trained ones have. They hid that our rotary frequencies had other last
bits, and our products longer chains of additions, than those of transformers.
"""

from dataclasses import replace
from pathlib import Path

import forward
import huggingface
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from layertap.core.taps import Site, Tap
from layertap.demo.checkpoint import write_checkpoint
from layertap.model.config import published_config
from layertap.model.decoder import multiply
from layertap.pipeline.step import plan_for

# All nine of 7,519 tokens, in float64 and twice in float32, would take 22 GB.
_SITES: tuple[Site, ...] = ("residual", "mlp", "attn")


def ours(folder: Path, ids: np.ndarray, dtype: str = "float32") -> dict[Tap, np.ndarray]:
    """What a run on CPU gives."""
    return forward.activations(folder, ids, plan_for("cpu", np.dtype(dtype)), dtype, sites=_SITES)


def distances(values: dict[Tap, np.ndarray], truth: dict[Tap, np.ndarray]) -> np.ndarray:
    """[taps, tokens]"""
    assert set(values) == set(truth)
    return np.stack([huggingface.relative_errors(values[tap], truth[tap]) for tap in truth])


@pytest.mark.parametrize("terms", [576, 896, 1536, 4864])
def test_products_are_summed_by_short_chains(terms: int) -> None:
    drawn = np.random.default_rng(terms)
    x, kernel = (drawn.standard_normal(shape, np.float32) for shape in ((1, 128, terms), (terms, 256)))
    truth = x.astype(np.float64) @ kernel.astype(np.float64)

    def distance(longest: int | None) -> float:
        product = multiply(jnp.asarray(x), jnp.asarray(kernel), longest)
        return float(np.linalg.norm(product - truth) / np.linalg.norm(truth))

    assert distance(256) < 3.3e-7  # without parts 3.9e-7 to 4.1e-7, with torch 2.5e-7 to 2.7e-7
    assert distance(64) < distance(256) <= distance(None)


@pytest.mark.parametrize(
    ("inputs", "outputs", "terms"),
    [(896, 64, None), (256, 64, 256), (512, 8320, 256), (521, 1152, 256)],  # too wide; 521 is prime
)
def test_products_that_have_no_parts_are_one(inputs: int, outputs: int, terms: int | None) -> None:
    drawn = np.random.default_rng(0)
    x, kernel = (jnp.asarray(drawn.standard_normal(shape, np.float32)) for shape in ((1, 2, inputs), (inputs, outputs)))
    np.testing.assert_array_equal(multiply(x, kernel, terms), multiply(x, kernel, None))


@pytest.mark.whole
def test_a_massive_activation_takes_us_no_further_from_float64_than_transformers(tmp_path: Path) -> None:
    shape = replace(
        published_config("0.5b"),
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=3,
        num_attention_heads=9,
        num_key_value_heads=3,
        vocab_size=1024,
        rms_norm_eps=1e-5,
        rope_theta=1e5,
    )
    write_checkpoint(tmp_path, shape, dtype="float32")
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["model.embed_tokens.weight"][1, 7] = 20_000
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    ids = np.random.default_rng(2).integers(2, 1024, 700).astype(np.int32)
    ids[0] = 1
    truth = huggingface.activations(tmp_path, ids, "float64", _SITES)
    theirs, found = (
        distances(values, truth)
        for values in (huggingface.activations(tmp_path, ids, sites=_SITES), ours(tmp_path, ids))
    )
    # 1.5 is promised; here it is 1.0, and 1.45 with products in one part.
    assert found.mean() <= 1.3 * theirs.mean()
    assert found.max() <= 3 * theirs.max()


@pytest.fixture(scope="module")
def long_prompts(trained_model: Path, shared_data: Path) -> dict[str, np.ndarray]:
    """Token ids of two real ARC prompts, of 482 and 7,519 tokens."""
    return forward.arc_prompts(trained_model, shared_data, _TASKS)


_TASKS = {"6150a2bd": 482, "264363fd": 7519}


@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    "task",
    [
        pytest.param("6150a2bd", marks=pytest.mark.slow),
        pytest.param("264363fd", marks=pytest.mark.proof),  # minutes, and 10 GB
    ],
)
def test_real_weights_take_us_no_further_from_float64_than_promised(
    trained_model: Path, long_prompts: dict[str, np.ndarray], task: str
) -> None:
    ids = long_prompts[task]
    truth = huggingface.activations(trained_model, ids, "float64", _SITES)
    assert np.linalg.norm(truth[Tap(11, "residual")][0]) > 20_000  # what random weights lack
    theirs = distances(huggingface.activations(trained_model, ids, sites=_SITES), truth)
    found = distances(ours(trained_model, ids), truth)
    for name, errors in (("transformers", theirs), ("ours", found)):
        print(f"{task}, {len(ids)} tokens, {name}: worst {errors.max():.2e}, mean {errors.mean():.2e}")
    assert found.mean() <= 1.5 * theirs.mean()
    assert found.max() <= 3 * theirs.max()


@pytest.mark.slow
def test_bfloat16_on_real_weights_is_no_further_from_float32_than_transformers(
    trained_model: Path, long_prompts: dict[str, np.ndarray]
) -> None:
    ids = long_prompts["6150a2bd"]
    truth = huggingface.activations(trained_model, ids, sites=_SITES)
    theirs = distances(huggingface.activations(trained_model, ids, "bfloat16", _SITES), truth).mean(axis=1)
    found = distances(ours(trained_model, ids, "bfloat16"), truth).mean(axis=1)
    print(
        f"bfloat16: ours {found.mean():.2e}, transformers {theirs.mean():.2e}, ratios to {(found / theirs).max():.2f}"
    )
    assert (found <= theirs).all()


@pytest.mark.slow
def test_the_weights_stand_where_they_belong(trained_model: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(trained_model)
    model = AutoModelForCausalLM.from_pretrained(trained_model, dtype=torch.float32).eval()
    with torch.inference_mode():
        logits = model(tokenizer("The capital of France is", return_tensors="pt").input_ids).logits
    assert tokenizer.decode(int(logits[0, -1].argmax())) == " Paris"
