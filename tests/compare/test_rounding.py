"""Rounding is distinguished from faults, and the kinds of rounding from each other."""

from pathlib import Path

import dumps
import numpy as np
import pytest
import torch
from verdicts import Look, verdict

from layertap.compare.rounding import Grid, grid_of, judge, rounded


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_values_that_were_computed_in_float32_and_stored_in_half_of_it(
    look: Look, streams: list[np.ndarray], dtype: torch.dtype
) -> None:
    name = str(dtype).removeprefix("torch.")
    found = look(**{f"residual.{layer}": torch.as_tensor(stream).to(dtype) for layer, stream in enumerate(streams)})
    assert found.sound
    assert all(
        one.verdict.words.startswith(f"float32 values, rounded to {name} to be stored") for one in found.findings
    )


def test_widening_does_not_hide_that_values_were_bfloat16(look: Look, streams: list[np.ndarray]) -> None:
    found = look(**{"residual.2": torch.as_tensor(streams[2]).bfloat16().float()})
    assert "rounded to bfloat16 to be stored" in verdict(found)[1]


@pytest.mark.parametrize(("dtype", "told"), [(torch.bfloat16, "bfloat16"), (torch.float16, "float16")])
def test_a_model_that_ran_in_half_precision(
    look: Look, tiny_model: Path, prompts: list[np.ndarray], dtype: torch.dtype, told: str
) -> None:
    outputs = dumps.layer_outputs(tiny_model, prompts[0][None], dtype)
    found = look(**{f"residual.{layer}": output[0] for layer, output in enumerate(outputs)})
    assert found.sound
    assert all(one.verdict.words.startswith(f"rounding as of {told} computing") for one in found.findings)
    errors = [one.diagnosis.best.error for one in found.findings]
    assert errors == sorted(errors)  # each layer adds its own


def test_products_in_tf32(look: Look, tiny_model: Path, prompts: list[np.ndarray]) -> None:
    """TF32 is simulated, because no processor computes in it: operands of ten bits, sums in
    float32.
    """
    found = look(**by_rounded_operands(tiny_model, prompts[0], "tf32"))
    assert found.sound
    assert {one.diagnosis.best.rounding.level for one in found.findings} == {"tf32"}
    assert all("rounding as of TF32 products" in one.verdict.words for one in found.findings)


def test_products_of_bfloat16_operands_are_told_from_those(
    look: Look, tiny_model: Path, prompts: list[np.ndarray]
) -> None:
    found = look(**by_rounded_operands(tiny_model, prompts[0], "bfloat16"))
    assert found.sound
    assert {one.diagnosis.best.rounding.level for one in found.findings} == {"bfloat16"}


def by_rounded_operands(folder: Path, ids: np.ndarray, grid: Grid) -> dict[str, torch.Tensor]:
    """Return the output of each layer, with the operands of all projections rounded to a grid."""

    def on_grid(values: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(np.array(rounded(values.detach().numpy(), grid)))

    model = dumps.open_model(folder)
    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            module.weight.data = on_grid(module.weight)
            module.register_forward_pre_hook(lambda _module, given: (on_grid(given[0]),))
    return {f"residual.{layer}": output[0] for layer, output in enumerate(dumps.layer_outputs(model, ids[None]))}


def test_a_bfloat16_dump_of_another_layer_is_found_all_the_same(
    look: Look, tiny_model: Path, prompts: list[np.ndarray]
) -> None:
    outputs = dumps.layer_outputs(tiny_model, prompts[0][None], torch.bfloat16)
    wrong, words = verdict(look(**{"residual.2": outputs[1][0]}))
    assert wrong
    assert "this is `residual` of layer 1 " in words
    assert "not `residual` of layer 2; rounding as of bfloat16 computing" in words


def test_a_change_as_small_as_rounding_is_found(look: Look, streams: list[np.ndarray]) -> None:
    wrong, words = verdict(look(**{"residual.2": np.float32(1.002) * streams[2]}))
    assert wrong
    assert "multiplied by 1.002" in words


def test_more_than_rounding_is_no_rounding(look: Look, streams: list[np.ndarray]) -> None:
    noise = np.random.default_rng(0).normal(size=streams[2].shape).astype(np.float32)
    wrong, words = verdict(look(**{"residual.2": streams[2] + 0.1 * noise}))
    assert wrong
    assert "nothing explains it: the nearest is `residual` of layer 2" in words


@pytest.mark.parametrize("grid", ["bfloat16", "float16", "tf32", "float32"])
def test_a_grid_is_known_by_its_values(grid: Grid) -> None:
    values = np.random.default_rng(0).normal(size=(50, 64)).astype(np.float32)
    values *= np.float32(1e6 if grid == "tf32" else 1)  # else they could have been float16 as well
    assert grid_of([rounded(values, grid)]) == grid


def test_tf32_has_ten_bits_and_rounds_to_the_nearest_even() -> None:
    step = 2.0**-10
    values = np.array([1 + step / 2, 1 + 3 * step / 2, 1 + 0.51 * step, -1 - 0.49 * step], np.float32)
    np.testing.assert_array_equal(rounded(values, "tf32"), np.array([1, 1 + 2 * step, 1 + step, -1], np.float32))


def test_a_level_needs_no_luck(streams: list[np.ndarray]) -> None:
    """The same error is rounding in one dtype, and a fault in another."""
    truth = streams[2]
    noise = np.random.default_rng(0).normal(size=truth.shape).astype(np.float32)
    found = truth + np.float32(0.004) * noise
    assert judge([found], [truth], "float32", 3).level == "bfloat16"
    assert judge([truth + np.float32(0.2) * noise], [truth], "bfloat16", 3).level is None
    assert judge([truth], [truth], "float32", 3).level == "float32"
