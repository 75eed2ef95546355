"""The certificate agrees with transformers in float32, and does not depend on where a run was
interrupted.
"""

import shutil
from pathlib import Path

import huggingface
import numpy as np
import pytest
import shards
from runs import changed, extract_some, finished, manifest, out

from layertap.check.verify import verify
from layertap.config.extract import ExtractConfig, HostsConfig
from layertap.core.taps import Tap
from layertap.errors import RunMismatchError, UsageError
from layertap.pipeline.run import extract


@pytest.fixture
def certified(config: ExtractConfig) -> ExtractConfig:
    return changed(config, certify=5, activation_type=("residual", "mlp"))


@pytest.mark.whole
def test_the_cosine_is_that_of_transformers_in_float32(certified: ExtractConfig, tiny_model: Path) -> None:
    summary = extract(certified)
    certificate = manifest(certified)["certificate"]
    assert (certificate["prompts"], certificate["sample_idx"]) == (5, [[0, 4]])
    taps = {(tap["layer"], tap["site"]): tap for tap in certificate["taps"]}
    assert set(taps) == {(layer, site) for layer in (1, 3) for site in ("residual", "mlp")}
    stored = shards.samples(out(certified) / "residual", 1)
    truths = [huggingface.activations(tiny_model, stored[index]["token_ids"].tolist()) for index in range(5)]
    for (layer, site), told in taps.items():
        stored = shards.samples(out(certified) / site, layer)
        cosines, tokens = [], 0
        for index in range(5):
            found = stored[index]["activation"].astype(np.float64)
            truth = truths[index][Tap(layer, site)]
            sizes = np.linalg.norm(found, axis=1) * np.linalg.norm(truth, axis=1)
            cosines.append((found * truth).sum(axis=1) / sizes)
            tokens += len(found)
        # The run packs these prompts with others: the numbers are the same up to the order of sums
        # in bfloat16.
        assert told["cosine_mean"] == pytest.approx(np.concatenate(cosines).mean(), abs=2e-5)
        assert 0.9 < told["cosine_min"] <= told["cosine_mean"] < 1
        assert 0 < told["relative_error_mean"] <= told["relative_error_max"] < 0.5
        assert certificate["tokens"] == tokens
    assert "certified against float32 on 5 prompts: cosine at least 0.9" in summary.describe()


def test_a_run_in_float32_is_its_own_reference(certified: ExtractConfig) -> None:
    exact = changed(certified, compute_dtype="float32", max_tasks=3)
    extract(exact)
    for tap in manifest(exact)["certificate"]["taps"]:
        assert tap["cosine_min"] == pytest.approx(1)
        assert tap["relative_error_max"] == 0


def test_rounding_to_the_storage_dtype_counts(certified: ExtractConfig, tmp_path: Path) -> None:
    rounded = changed(certified, compute_dtype="float32", max_tasks=3, storage_dtype="float16")
    extract(rounded)
    for tap in manifest(rounded)["certificate"]["taps"]:
        assert 1e-5 < tap["relative_error_mean"] < 2**-10


@pytest.mark.whole
@pytest.mark.parametrize(
    ("dtype", "least", "most"), [("float8_e4m3", 2**-7, 2**-4), ("int8", 2**-9, 2**-5)], ids=["float8_e4m3", "int8"]
)
def test_quantising_counts_and_an_interruption_changes_no_byte(
    certified: ExtractConfig, dtype: str, least: float, most: float
) -> None:
    settings = {"compute_dtype": "float32", "format": "safetensors", "storage_dtype": dtype, "shard_size_gb": 1e-4}
    quantised = changed(certified, **settings)
    extract_some(quantised, 2)
    extract(quantised)
    assert verify(out(quantised)).sound
    resumed = shards.contents(out(quantised))
    for tap in manifest(quantised)["certificate"]["taps"]:
        assert least < tap["relative_error_mean"] <= tap["relative_error_max"] < most
        assert 1 - most**2 < tap["cosine_min"] < 1
    shutil.rmtree(out(quantised))
    shutil.rmtree(quantised.checkpoint_dir)
    finished(quantised)
    assert shards.contents(out(quantised)) == resumed
    with pytest.raises(RunMismatchError, match=r"storage\.dtype"):
        extract(changed(quantised, storage_dtype="bfloat16"))


@pytest.mark.whole
@pytest.mark.parametrize("kept", [0, 3])
def test_an_interrupted_run_has_the_certificate_of_one_that_ran_through(certified: ExtractConfig, kept: int) -> None:
    finished(certified)
    whole = shards.contents(out(certified))
    shutil.rmtree(out(certified))
    shutil.rmtree(certified.checkpoint_dir)
    extract_some(certified, kept)
    extract(certified)
    assert shards.contents(out(certified)) == whole


@pytest.mark.whole
def test_a_resumed_run_does_not_certify_again(certified: ExtractConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    extract_some(certified, 2)
    again: list[object] = []
    monkeypatch.setattr("layertap.pipeline.run.certify", lambda *arguments: again.append(arguments))
    extract(certified)
    assert not again


@pytest.mark.whole
def test_it_is_part_of_the_run(certified: ExtractConfig) -> None:
    extract_some(certified, 1)
    with pytest.raises(RunMismatchError, match="certify: 5 there, 0 now"):
        extract(changed(certified, certify=0))


def test_without_it_the_manifest_has_an_empty_one(config: ExtractConfig) -> None:
    summary = extract(changed(config, max_tasks=1))
    assert manifest(config)["certificate"] == {}
    assert "certified" not in summary.describe()


@pytest.mark.parametrize("prompts", [-1, 11])
def test_more_prompts_than_a_window_has_are_refused(config: ExtractConfig, prompts: int) -> None:
    with pytest.raises(UsageError, match=f"--certify {prompts} must be at most --window_samples"):
        changed(config, certify=prompts)


def test_several_hosts_are_refused(config: ExtractConfig) -> None:
    with pytest.raises(UsageError, match="--certify does not work with --multihost"):
        changed(config, certify=2, hosts=HostsConfig(multihost=True))
