"""Layertap beside transformers: the comparison runs, uses one device, and computes correctly."""

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path

import commands
import numpy as np
import pytest

from benchmarks import __main__ as comparison
from benchmarks import report
from benchmarks.baselines import by_length, hidden_states, load, pad
from benchmarks.config import BenchmarkConfig, ContenderConfig, resolved
from benchmarks.contenders import CONTENDERS
from benchmarks.device import environment
from benchmarks.workload import Figures, baseline_ids
from layertap.model.config import published_config

_PATHS = {"PYTHONPATH": f"{commands.ROOT / 'src'}:{commands.ROOT}"}


def _runs(*rates: float) -> list[dict[str, float]]:
    return [{"tokens": rate, "seconds": 1.0, "written_mb": 100.0} for rate in rates]


_CEILING = [{"gflops": 1000.0, "disk_mb": 500.0}]


def test_gflop_is_that_of_products_and_causal_attention() -> None:
    config = published_config("0.5b")
    per_token = 2 * (896 * (896 + 2 * 128) + 896 * 896 + 3 * 896 * 4864)
    pairs = 10 * 11 / 2
    assert report.model_gflop(config, 24, [10]) == pytest.approx(24 * (10 * per_token + 4 * 896 * pairs) / 1e9)


def test_a_ratio_is_of_one_turn_and_its_span_is_told() -> None:
    assert report.faster_by(_runs(300, 100, 90), _runs(200, 100, 45)) == "1.50 (1.00 to 2.00)"


def test_transformers_is_credited_with_all_layers_where_layertap_ends_early() -> None:
    config, lengths = published_config("0.5b"), {"padded": [10, 20], "best": [10], "forward": [10], "layertap": [10]}
    gflop = report.gflop_per_token(config, (3, 11), lengths)
    assert gflop["best"] == pytest.approx(2 * gflop["layertap"])
    assert gflop["forward"] == gflop["layertap"] == report.model_gflop(config, 12, [10]) / 10
    assert gflop["padded"] == report.model_gflop(config, 24, [10, 20]) / 30
    assert report.gflop_per_token(config, (), lengths)["layertap"] == gflop["best"]


@pytest.mark.parametrize(
    ("given", "seen"), [(None, "0"), ("2", "2"), ("3, 1", "3"), ("GPU-8f1,GPU-9", "GPU-8f1"), ("", "")]
)
def test_all_contenders_see_the_first_visible_card(given: str | None, seen: str) -> None:
    variables = {"PATH": "p"} | ({} if given is None else {"CUDA_VISIBLE_DEVICES": given})
    assert environment(variables, "gpu") == {"PATH": "p", "JAX_PLATFORMS": "cuda", "CUDA_VISIBLE_DEVICES": seen}
    assert environment(variables, "cpu") == variables | {"JAX_PLATFORMS": "cpu"}


@pytest.mark.parametrize(
    ("platforms", "said"),
    [
        ("cpu", "--device gpu, but JAX computes on cpu (JAX_PLATFORMS is 'cpu'): unset it"),
        ("cuda", "--device gpu: JAX finds no device (JAX_PLATFORMS is 'cuda'): "),
    ],
)
def test_jax_that_sees_no_card_is_refused(tmp_path: Path, platforms: str, said: str) -> None:
    variables = {**_PATHS, "JAX_PLATFORMS": platforms, "CUDA_VISIBLE_DEVICES": ""}
    done = commands.run(["-m", "benchmarks.device", "--device", "gpu", "--libraries", "jax"], tmp_path, variables)
    assert done.returncode == 1
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_prompts_are_batched_by_length() -> None:
    prompts = [np.arange(length) for length in (3, 9, 2, 10, 40, 4)]
    batches = by_length(prompts, 20)
    assert [[len(ids) for ids in batch] for batch in batches] == [[40], [10, 9], [4, 3, 2]]
    ids, mask = pad(batches[-1])
    assert ids.tolist() == [[0, 1, 2, 3], [0, 1, 2, 0], [0, 1, 0, 0]]
    assert mask.tolist() == [[1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 0, 0]]


def test_hidden_states_of_a_padded_batch_without_a_mask_are_those_of_each_prompt(
    tmp_path: Path, tiny_model: Path
) -> None:
    import torch
    from transformers import AutoModel

    (tmp_path / "model-tiny").symlink_to(tiny_model)
    config = ContenderConfig(size="tiny", dtype="float32", output_dir=str(tmp_path))
    model = load(AutoModel.from_pretrained, config)
    batch = [np.arange(5, 5 + length) for length in (30, 12)]
    with torch.inference_mode():
        together = list(hidden_states(model, batch, "cpu"))
        alone = list(hidden_states(model, batch[1:], "cpu"))
    assert len(together) == 5
    for both, one in zip(together, alone, strict=True):
        torch.testing.assert_close(both[1, :12], one[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("wanted", "given"), [(None, range(10)), (9, range(10)), (1, range(4, 8)), (2, [*range(4), *range(8, 10)])]
)
def test_transformers_is_given_whole_batches_from_all_parts(
    monkeypatch: pytest.MonkeyPatch, wanted: int | None, given: Sequence[int]
) -> None:
    monkeypatch.setattr("benchmarks.workload.prompt_ids", lambda config: [np.array([each]) for each in range(10)])
    batches = baseline_ids(ContenderConfig(baseline_batches=wanted))
    assert [int(ids[0]) for ids in batches] == list(given)


@pytest.mark.parametrize("contender", ["padded", "best", "layertap"])
def test_a_contender_counts_the_tokens_of_the_same_prompts(
    tmp_path: Path, tiny_model: Path, demo_tasks: Path, contender: str
) -> None:
    (tmp_path / "model-tiny").symlink_to(tiny_model)
    config = ContenderConfig(
        dataset_path=str(demo_tasks), size="tiny", tasks=2, dtype="float32", output_dir=str(tmp_path)
    )
    figures = CONTENDERS[contender][0](config)
    assert figures["tokens"] == sum(len(ids) for ids in comparison.prompt_ids(config))
    assert figures["seconds"] > 0
    assert [path.name for path in tmp_path.iterdir()] == ["model-tiny"]


@pytest.mark.whole
def test_one_failure_loses_neither_its_own_runs_nor_the_rest(
    tmp_path: Path, demo_tasks: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(one: ContenderConfig) -> Figures:
        if one.dtype == "bfloat16" and one.contender == "best":
            raise subprocess.CalledProcessError(-9, ["python", "-m", "benchmarks.contenders"])
        return {"tokens": 10.0, "computed_tokens": 11.0, "seconds": 2.0, "written_mb": 4.0, "gflops": 9, "disk_mb": 8}

    monkeypatch.setattr(comparison, "run_alone", run)
    config = BenchmarkConfig(dataset_path=str(demo_tasks), size=("tiny",), repeats=1, output_dir=str(tmp_path), tasks=2)
    with pytest.raises(SystemExit, match=r"tiny bfloat16: status -9 of -m benchmarks\.contenders"):
        comparison.compare(resolved(config), {"ram_gb": 5.0})
    document = json.loads((tmp_path / "results.json").read_text())
    broken, whole = (document["results"]["tiny"][dtype] for dtype in ("bfloat16", "float32"))
    assert list(broken["runs"]) == ["ceiling", "padded"]
    assert whole["medians"]["layertap"]["tokens_per_second"] == 5
    assert document["machine"] == {"ram_gb": 5.0}
    assert (tmp_path / "results.png").stat().st_size > 1000
    assert "| tiny float32 |" in capsys.readouterr().out


@pytest.mark.slow
def test_every_contender_runs(tmp_path: Path) -> None:
    flags = ["--size", "tiny", "--tasks", "2", "--repeats", "1", "--dtypes", "float32"]
    done = commands.run(["-m", "benchmarks", *flags, "--output_dir", "out"], tmp_path, _PATHS)
    assert done.returncode == 0, done.stderr
    document = json.loads((tmp_path / "out" / "results.json").read_text())
    found = document["results"]["tiny"]["float32"]
    assert {name: len(runs) for name, runs in found["runs"].items()} == {
        "ceiling": 1,
        "padded": 1,
        "best": 1,
        "layertap": 1,
    }
    assert found["of_ceiling"]["layertap"] > 0
    assert document["machine"]["gpu"] is None
    assert document["machine"]["ram_gb"] > 0
    assert (tmp_path / "out" / "results.png").stat().st_size > 1000
    assert "Layertap waited for" in done.stdout
