"""Which rows fit, by whatever measures them."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from layertap.config.plan import PlanConfig
from layertap.errors import DoesNotFitError
from layertap.model import weights
from layertap.plan import memory
from layertap.plan.accelerators import parse_accelerator
from layertap.plan.memory import ChipMemory, estimate_memory, find_fit, fit_on, mesh_shape
from layertap.plan.planned import planned_run


def up_to(tokens: int) -> Callable[[int, int], ChipMemory]:
    def measure(rows: int, length: int) -> ChipMemory:
        if rows * length > tokens:
            raise DoesNotFitError(f"{rows} rows of {length}")
        return ChipMemory(rows * length, compiled=False)

    return measure


@pytest.mark.parametrize(
    ("tokens", "rows", "longest"), [(16_384, 4, 16_384), (9000, 2, 8192), (5000, 1, 4096), (100_000, 6, 16_384)]
)
def test_rows_are_halved_until_they_fit(tokens: int, rows: int, longest: int) -> None:
    fit = find_fit(up_to(tokens), 6 if tokens == 100_000 else 4, (4096, 8192, 16_384))
    assert (fit.rows, fit.longest_row) == (rows, longest)
    assert fit.memory.peak == rows * 4096


@pytest.mark.parametrize(("accelerator", "rows"), [("v5litepod-64", 8), ("h100x8", 16), ("cpu", 1)])
def test_without_a_batch_size_the_largest_that_fits_is_recommended(
    planned: Callable[..., PlanConfig], accelerator: str, rows: int
) -> None:
    asked = {"model_path": "7b", "tokens": 1000, "layers_to_extract": (), "batch_size": None, "compiler": False}
    config = planned(**asked, row_length=4096, max_seq_length=16_384)
    place = replace(parse_accelerator(accelerator), memory_bytes=10**12) if accelerator == "cpu" else None
    assert fit_on(planned_run(config), place or parse_accelerator(accelerator), print).rows == rows


def test_the_compiler_is_not_asked_about_what_is_far_too_much(
    planned: Callable[..., PlanConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def compiled(_run: object, _accelerator: object, _mesh: object, rows: int, _length: int) -> ChipMemory:
        asked.append(rows)
        return ChipMemory(10**9, compiled=True)

    monkeypatch.setattr(memory, "_compiled", compiled)
    monkeypatch.setattr(memory, "find_spec", lambda _name: True)
    config = planned(model_path="32b", tokens=1000, layers_to_extract=(), batch_size=None, row_length=4096)
    assert fit_on(planned_run(config), parse_accelerator("v5litepod-64"), print).rows == asked[0] < 16


def test_shapes_are_built_once_for_all_questions(
    planned: Callable[..., PlanConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    build = weights.abstract_model
    monkeypatch.setattr(
        weights, "abstract_model", lambda model, layers, dtype: asked.append(layers) or build(model, layers, dtype)
    )
    memory._bytes_of.cache_clear()
    config = planned(model_path="0.5b", tokens=1000, layers_to_extract=(), batch_size=16, compiler=False)
    for accelerator in ("v5litepod-64", "h100x8"):
        fit_on(planned_run(config), parse_accelerator(accelerator), print)
    assert sorted(asked) == [1, 24], "the layer that is gathered, and the model"


def test_what_does_not_fit_at_all_is_refused() -> None:
    with pytest.raises(DoesNotFitError, match="1 rows of 4096"):
        find_fit(up_to(1000), 4, (4096, 8192))


def test_72b_does_not_fit_on_one_h200(planned: Callable[..., PlanConfig]) -> None:
    config = planned(model_path="72b", tokens=1000, layers_to_extract=())
    with pytest.raises(DoesNotFitError, match=r"72b on h200x1.*by estimate"):
        fit_on(planned_run(config), parse_accelerator("h200x1"), print)
    four = parse_accelerator("h200x8")
    assert fit_on(planned_run(config), four, print).rows == 2
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
    memory = estimate_memory(run, accelerator, mesh_shape(run, accelerator), tokens)
    assert memory.peak / 1e9 == pytest.approx(compiled, rel=0.1)
