"""The plan of a number of tokens: usual lengths, and the prefix that a run computes once."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from layertap.config.plan import PlanConfig
from layertap.pipeline.hosts import Hosts
from layertap.pipeline.inputs import window_rules
from layertap.plan.accelerators import TYPICAL_PREFIXES, UNKNOWN_PREFIX
from layertap.plan.planned import planned_run
from layertap.plan.usual import UsualPrefix, typical_lengths, usual_prefix, usual_workload
from layertap.plan.workload import count_dataset

Planned = Callable[..., PlanConfig]


@pytest.mark.parametrize("tokens", [1, 1000, 300_000, 50_000_000])
def test_usual_prompts_have_the_tokens_that_are_asked_for(planned: Planned, tokens: int) -> None:
    config = planned(tokens=tokens, window_samples=1024)
    form = planned_run(config).form
    work = usual_workload(config, form, devices=1)
    assert work.tokens == pytest.approx(tokens)
    assert work.output.activations == tokens * form.bytes_per_token
    assert work.computed_tokens >= work.tokens
    assert not work.counted


def test_usual_lengths_are_those_of_arc(planned: Planned) -> None:
    lengths = typical_lengths(window_rules(planned(window_samples=1024, max_seq_length=16_384), Hosts(), 1))
    assert np.median(lengths) == pytest.approx(1110, rel=0.02)
    assert np.mean(lengths) == pytest.approx(1617, rel=0.03)


def test_the_prefix_is_in_each_prompt_and_computed_once_on_each_device(planned: Planned) -> None:
    config = planned(tokens=10_000_000, window_samples=1024, batch_size=1)
    form = planned_run(config).form
    plain = usual_workload(config, form, devices=4, hosts=2)
    shared = usual_workload(config, form, devices=4, hosts=2, prefix=298)
    assert shared.tokens == pytest.approx(plain.tokens)
    assert shared.shared_tokens == pytest.approx(298 * shared.samples)
    assert shared.prefix_rows == 2 * 4 * 384
    assert plain.computed_tokens - shared.computed_tokens == pytest.approx(shared.shared_tokens, rel=0.05)
    assert shared.prefix_pairs == pytest.approx(298 * (shared.tokens - shared.shared_tokens))
    assert (plain.shared_tokens, plain.prefix_pairs, plain.prefix_rows) == (0, 0, 0)


def test_no_prompt_is_shorter_than_its_prefix_unless_it_is_cut(planned: Planned) -> None:
    rules = window_rules(planned(window_samples=1024, max_seq_length=16_384), Hosts(), 1)
    assert min(typical_lengths(rules)) < 100
    assert min(typical_lengths(rules, prefix=298)) == 299
    assert set(typical_lengths(dataclasses.replace(rules, longest=200), prefix=298)) == {200}
    config = planned(tokens=1000, max_seq_length=200)
    assert usual_workload(config, planned_run(config).form, devices=1, prefix=298).shared_tokens == 0


def test_with_a_tokenizer_the_prefix_is_that_of_the_run(planned: Planned) -> None:
    counted = planned_run(planned())
    work = count_dataset(counted.config, counted.checkpoint(), counted.form, devices=1)
    found = usual_prefix(planned_run(planned(tokens=1000)))
    assert found == UsualPrefix(round(work.shared_tokens / work.samples), None)
    assert found.tokens > 0


@pytest.mark.parametrize("version", TYPICAL_PREFIXES)
def test_what_is_assumed_of_a_published_size_is_what_qwens_tokenizer_gives(shared_data: Path, version: str) -> None:
    flags = {"tokens": 1000, "model_path": "7b", "prompt_version": version}
    assumed = usual_prefix(planned_run(PlanConfig(**flags)))
    counted = usual_prefix(planned_run(PlanConfig(**flags, tokenizer=str(shared_data / "qwen2.5-tokenizer"))))
    assert assumed.assumption == TYPICAL_PREFIXES[version]
    assert counted == UsualPrefix(assumed.tokens, None)


def test_without_sharing_nothing_is_assumed(planned: Planned) -> None:
    for place in ({}, {"model_path": "7b"}):
        assert usual_prefix(planned_run(planned(tokens=1000, share_prefix=False, **place))) == UsualPrefix()


def test_of_a_template_of_the_users_own_nothing_is_known_without_a_tokenizer(tmp_path: Path) -> None:
    config = PlanConfig(tokens=1000, model_path="7b", prompt_template=str(tmp_path))
    assert usual_prefix(planned_run(config)) == UsualPrefix(0, UNKNOWN_PREFIX)


def test_a_checkpoint_without_a_tokenizer_is_planned_as_before(planned: Planned, tmp_path: Path, tiny_model) -> None:
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "config.json").write_bytes((tiny_model / "config.json").read_bytes())
    config = planned(tokens=1000, model_path=str(tmp_path / "bare"))
    assert usual_prefix(planned_run(config)).assumption == TYPICAL_PREFIXES[config.prompt_version]
