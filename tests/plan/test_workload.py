"""Sums over steps, counted and usual."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from layertap.config.plan import PlanConfig
from layertap.extract.packing import batch_arrays, pack_window, row_ladder
from layertap.model.attention import BLOCK
from layertap.plan.planned import planned_run
from layertap.plan.workload import count_dataset, typical_lengths, usual_workload, visited_pairs


@given(st.lists(st.integers(1, 2048), min_size=1, max_size=20), st.integers(1, 3))
def test_visited_pairs_are_those_of_the_kernels_own_loop(lengths: list[int], batch: int) -> None:
    for step in pack_window(lengths, row_ladder(1024, 2048), batch):
        _, seg_start = batch_arrays(step, [np.zeros(length, np.int32) for length in lengths])
        visited = 0
        for row in seg_start:
            for first in range(0, step.length, BLOCK):
                visited += first // BLOCK + 1 - row[first] // BLOCK
        assert visited_pairs(step) == visited * BLOCK * BLOCK


@pytest.mark.parametrize("tokens", [1, 1000, 300_000, 50_000_000])
def test_usual_prompts_have_the_tokens_that_are_asked_for(planned: Callable[..., PlanConfig], tokens: int) -> None:
    config = planned(tokens=tokens, window_samples=1024)
    form = planned_run(config).form
    work = usual_workload(config, form, devices=1)
    assert work.tokens == pytest.approx(tokens)
    assert work.output.activations == tokens * form.bytes_per_token
    assert work.computed_tokens >= work.tokens
    assert not work.counted


def test_usual_lengths_are_those_of_arc(planned: Callable[..., PlanConfig]) -> None:
    from layertap.extract.hosts import Hosts
    from layertap.extract.inputs import window_rules

    lengths = typical_lengths(window_rules(planned(window_samples=1024, max_seq_length=16_384), Hosts(), 1))
    assert np.median(lengths) == pytest.approx(1110, rel=0.02)
    assert np.mean(lengths) == pytest.approx(1617, rel=0.03)


def test_several_hosts_count_what_one_does(planned: Callable[..., PlanConfig]) -> None:
    config = planned(format="safetensors", batch_size=1, shard_size_gb=1.0)
    run = planned_run(config)
    alone = count_dataset(config, run.checkpoint(), run.form, devices=4)
    three = count_dataset(config, run.checkpoint(), run.form, devices=4, hosts=3)
    assert (three.samples, three.tokens, three.own_pairs) == (alone.samples, alone.tokens, alone.own_pairs)
    assert three.output.activations == alone.output.activations
    assert (alone.output.shards, three.output.shards) == (1, 3)
    assert {rows for rows, _ in three.steps} == {12}
