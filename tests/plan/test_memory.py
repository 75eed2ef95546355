"""Which rows fit, by whatever measures them."""

from collections.abc import Callable

import pytest

from layertap.errors import DoesNotFitError
from layertap.plan.accelerators import parse_accelerator
from layertap.plan.config import PlanConfig
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
