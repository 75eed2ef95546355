"""Which rows fit, and how close the estimate is to the TPU compiler's figures."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from layertap.config.plan import PlanConfig
from layertap.errors import DoesNotFitError
from layertap.model import weights
from layertap.plan import planned as planned_runs
from layertap.plan.accelerators import parse_accelerator
from layertap.plan.planned import Fit, estimate_memory, fit_on, mesh_shape, planned_run


@pytest.mark.parametrize(
    ("tokens", "asked", "rows", "longest"),
    [(16_384, 4, 4, 16_384), (9000, 4, 2, 8192), (5000, 4, 1, 4096), (100_000, 6, 6, 16_384)],
)
def test_rows_are_halved_until_they_fit(
    planned: Callable[..., PlanConfig],
    monkeypatch: pytest.MonkeyPatch,
    tokens: int,
    asked: int,
    rows: int,
    longest: int,
) -> None:
    monkeypatch.setattr(planned_runs, "estimate_memory", lambda _run, _accelerator, _mesh, tokens: tokens)
    run = planned_run(planned(tokens=1000, batch_size=asked, row_length=4096, max_seq_length=16_384))
    place = replace(parse_accelerator("a100x1"), memory_bytes=round(tokens / 0.9) + 1)
    assert fit_on(run, place) == Fit(rows, rows * 4096, longest, longest)


@pytest.mark.parametrize(("accelerator", "rows"), [("v5litepod-64", 8), ("h100x8", 16)])
def test_without_a_batch_size_the_largest_that_fits_is_recommended(
    planned: Callable[..., PlanConfig], accelerator: str, rows: int
) -> None:
    asked = {"model_path": "7b", "tokens": 1000, "layers_to_extract": (), "batch_size": None}
    config = planned(**asked, row_length=4096, max_seq_length=16_384)
    assert fit_on(planned_run(config), parse_accelerator(accelerator)).rows == rows


def test_shapes_are_built_once_for_all_questions(
    planned: Callable[..., PlanConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    build = weights.abstract_model
    monkeypatch.setattr(
        weights, "abstract_model", lambda model, layers, dtype: asked.append(layers) or build(model, layers, dtype)
    )
    planned_runs._bytes_of.cache_clear()
    config = planned(model_path="0.5b", tokens=1000, layers_to_extract=(), batch_size=16)
    for accelerator in ("v5litepod-64", "h100x8"):
        fit_on(planned_run(config), parse_accelerator(accelerator))
    assert sorted(asked) == [1, 24], "the layer that is gathered, and the model"


def test_72b_does_not_fit_on_one_h200(planned: Callable[..., PlanConfig]) -> None:
    config = planned(model_path="72b", tokens=1000, layers_to_extract=())
    with pytest.raises(DoesNotFitError, match=r"72b on h200x1.*estimated"):
        fit_on(planned_run(config), parse_accelerator("h200x1"))
    four = parse_accelerator("h200x8")
    assert fit_on(planned_run(config), four).rows == 2
    assert str(mesh_shape(planned_run(config), four)) == "data=1,fsdp=8"


@pytest.mark.parametrize(
    ("model", "topology", "tokens", "compiled"),
    [
        ("0.5b", "v5e:2x2", 32_768, 2.7),
        ("1.5b", "v5e:2x2", 32_768, 6.2),
        ("7b", "v5e:8x8", 32_768, 11.5),
        ("14b", "v5e:8x8", 16_384, 12.3),
        ("32b", "v5e:8x8", 8192, 11.3),
        ("72b", "v5e:8x8", 8192, 15.3),
        ("72b", "v4:4x4x4", 16_384, 25.7),
    ],
)
def test_estimates_are_near_the_compilers_figures(
    planned: Callable[..., PlanConfig], model: str, topology: str, tokens: int, compiled: float
) -> None:
    run = planned_run(planned(model_path=model, tokens=1000, layers_to_extract=()))
    accelerator = parse_accelerator(topology)
    peak = estimate_memory(run, accelerator, mesh_shape(run, accelerator), tokens)
    assert peak / 1e9 == pytest.approx(compiled, rel=0.1)
