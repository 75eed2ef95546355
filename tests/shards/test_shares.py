"""What `layertap stats` says about possible trouble, compared with the same numbers from the
samples.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
import outputs
import pytest
from clouds import BUCKET
from fakes.gcs import FakeGcs
from hypothesis import given
from hypothesis import strategies as st

from layertap.cli import main
from layertap.core.columns import token_columns
from layertap.core.sample import Sample
from layertap.core.taps import Tap
from layertap.objects import open_store
from layertap.shards.shares import Shares, measure_shares
from layertap.shards.statistics_files import open_runs
from layertap.shards.writer import ShardWriter

SITES = ("residual", "mlp")
PREFIX = (7, 8, 9)


def sample(index: int, token_ids: Sequence[int]) -> Sample:
    """A sample with a sink at its first token, and some others."""
    plain = outputs.sample(index, len(token_ids), SITES)
    factors = np.random.default_rng(index).choice([1, 1, 1, 1, 500], (len(token_ids), 1)).astype(np.float32)
    factors[:1] = 300
    return replace(
        plain,
        columns=token_columns(np.array(token_ids, np.int32), frozenset()),
        activations={tap: values * factors for tap, values in plain.activations.items()},
    )


def shares_of(*folders: Path) -> Shares:
    return measure_shares(open_runs([open_store(str(folder)) for folder in folders]))


def expected_of(samples: Sequence[Sample], tap: Tap) -> tuple[int, list[float]]:
    """Return the prefix's tokens, and the shares of sinks, prefix, and prefix without sinks, sample
    by sample.
    """
    beginning = zip(*(one.token_ids.tolist() for one in samples), strict=False)
    prefix = len(list(takewhile(lambda ids: len(set(ids)) == 1, beginning)))
    total = sinks = begun = rest = 0.0
    for one in samples:
        norms = np.linalg.norm(one.activations[tap].astype(np.float64), axis=1).astype(np.float32)
        squares, usual = norms.astype(np.float64) ** 2, np.sort(norms)[(len(norms) - 1) // 2]
        total += squares.sum()
        sinks += squares[norms > 10 * usual].sum()
        begun += squares[:prefix].sum()
        rest += squares[:prefix][norms[:prefix] <= 10 * usual].sum()
    return prefix, [sinks / total, begun / total, rest / (total - sinks)]


tails = st.lists(st.lists(st.lists(st.integers(0, 2), max_size=6), min_size=1, max_size=3), min_size=1, max_size=4)


@given(st.sampled_from(["safetensors", "pickle"]), tails, st.integers(1, 3), st.data())
def test_the_shares_are_those_of_the_samples(
    tmp_path_factory: pytest.TempPathFactory, name: str, contents: Any, begun: int, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("shares")
    numbers = iter(range(100))
    shards = [[sample(next(numbers), (*PREFIX[:begun], *tail)) for tail in shard] for shard in contents]
    cut = data.draw(st.integers(1, len(shards)))
    folders = [folder / "0", folder / "1"][: 1 + (cut < len(shards))]
    for own, part in zip(folders, (shards[:cut], shards[cut:]), strict=False):
        outputs.write(own, part, outputs.shard_format(SITES, name=name))
    found, flat = shares_of(*folders), [one for shard in shards for one in shard]
    for tap in (Tap(layer, site) for site in SITES for layer in outputs.LAYERS):
        prefix, shares = expected_of(flat, tap)
        assert found.prefix_tokens == prefix
        assert np.allclose([found.sinks[tap], found.prefix[tap], found.prefix_of_rest[tap]], shares, rtol=1e-5)


def test_what_is_not_finite_does_not_count(tmp_path: Path) -> None:
    plain = sample(0, (*PREFIX, 1, 2, 3))
    broken = {tap: values.copy() for tap, values in plain.activations.items()}
    for values in broken.values():
        values[4] = np.nan
        values[5] = np.inf
    form = outputs.shard_format(SITES, name="safetensors", keep_nonfinite=True)
    outputs.write(tmp_path / "a", [[replace(plain, activations=broken), sample(1, (*PREFIX, 4))]], form)
    found = shares_of(tmp_path / "a")
    assert found.prefix_tokens == 3
    assert all(0 < share <= 1 for share in (*found.sinks.values(), *found.prefix.values()))


def test_tokens_that_were_kept_elsewhere_are_no_prefix(tmp_path: Path) -> None:
    form = outputs.shard_format(SITES, name="safetensors")
    samples = [sample(n, (*PREFIX, n, n + 1)) for n in range(2)]
    late = [replace(one, columns={**one.columns, "positions": one.columns["positions"] + 2}) for one in samples]
    manifest = outputs.manifest(form, identity={"storage": {"keep_tokens": ["cells"]}})
    ShardWriter(open_store(str(tmp_path)), manifest, form, lambda _: None).commit(late, {}, complete=True)
    found = shares_of(tmp_path)
    assert found.prefix_tokens == 0
    assert set(found.prefix.values()) == {0.0}


def test_a_run_without_tokens_has_no_shares(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    form = outputs.shard_format(name="safetensors")
    ShardWriter(open_store(str(tmp_path)), outputs.manifest(form), form, lambda _: None).commit([], {}, complete=True)
    assert shares_of(tmp_path) == Shares(0, {}, {}, {})
    assert main(["stats", str(tmp_path)]) == 0
    assert "the prefix is 0 tokens" in capsys.readouterr().out


@pytest.fixture(params=("safetensors", "pickle"))
def folder(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    contents = [[sample(2 * n, (*PREFIX, 1, n)), sample(2 * n + 1, (*PREFIX, 2))] for n in range(3)]
    outputs.write(tmp_path, contents, outputs.shard_format(SITES, name=request.param))
    return tmp_path


def test_the_command_prints_two_lines_a_tap(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["stats", "--norms", "all", str(folder)]) == 0
    sizes, trouble, told = capsys.readouterr().out.split("\n\n")
    assert sizes.split()[:3] == [*trouble.split()[:2], "tokens"] == ["site", "layer", "tokens"]
    taps = [["residual", "0"], ["residual", "2"], ["mlp", "0"], ["mlp", "2"]]
    for printed in (sizes, trouble):
        assert [line.split()[:2] for line in printed.splitlines()[1:]] == taps
    assert "the prefix is 3 tokens" in told
    found = shares_of(folder)
    for line, tap in zip(trouble.splitlines()[1:], (Tap(int(layer), site) for site, layer in taps), strict=True):
        shares = found.sinks[tap], found.prefix[tap], found.prefix_of_rest[tap]
        assert line.split()[3:6] == [f"{share:.1%}" for share in shares]
        assert len(re.findall(r"\b[0-3]:-?[\d.e+]+", line)) == 6


def test_json_has_the_same_and_every_channel(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["stats", "--json", "--norms", "all", str(folder)]) == 0
    found = shares_of(folder)
    for told in json.loads(capsys.readouterr().out):
        tap = Tap(told["layer"], told["site"])
        mean, std = np.array(told["mean"]), np.array(told["std"])
        assert (told["sink_share"], told["prefix_share"]) == (found.sinks[tap], found.prefix[tap])
        assert (told["prefix_share_of_rest"], told["prefix_tokens"]) == (found.prefix_of_rest[tap], 3)
        assert np.isclose(told["mean_over_std"], np.linalg.norm(mean) / np.linalg.norm(std))
        assert told["largest_mean_channels"] == np.argsort(-np.abs(mean)).tolist()[:3]
        assert told["largest_std_channels"] == np.argsort(-std).tolist()[:3]


def test_norms_of_pickles_are_read_only_when_asked(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    quick = bool(list(folder.glob("*.safetensors")))
    assert main(["stats", str(folder)]) == 0
    assert ("norms were not read" in capsys.readouterr().out) != quick
    assert main(["stats", "--norms", "none", str(folder)]) == 0
    assert "norms were not read" in capsys.readouterr().out
    assert main(["stats", "--norms", "none", "--json", str(folder)]) == 0
    assert {told["sink_share"] for told in json.loads(capsys.readouterr().out)} == {None}


def test_activations_are_not_read(tmp_path: Path, gcs: FakeGcs) -> None:
    contents = [[replace(outputs.sample(n, 20_000, SITES))] for n in range(2)]
    outputs.write(tmp_path, contents, outputs.shard_format(SITES, name="safetensors"))
    for path in tmp_path.rglob("*.*"):
        gcs.put(BUCKET, f"a/{path.relative_to(tmp_path).as_posix()}", path.read_bytes())
    before = gcs.sent
    shares_of_bucket = measure_shares(open_runs([open_store(f"gs://{BUCKET}/a")]))
    assert len(shares_of_bucket.sinks) == 4
    headers, taps = 2 * (256 << 10) + 30_000, 4
    assert gcs.sent - before < headers + 40_000 * (4 * taps + 4)
