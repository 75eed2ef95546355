"""The counts of a plan equal what a run then writes, to the byte."""

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest

from layertap.config.extract import ExtractConfig
from layertap.config.plan import PlanConfig
from layertap.pipeline.run import extract
from layertap.plan.planned import planned_run
from layertap.plan.workload import count_dataset


def the_run(config: PlanConfig) -> ExtractConfig:
    return ExtractConfig(**{field.name: getattr(config, field.name) for field in dataclasses.fields(ExtractConfig)})


@pytest.mark.whole
@pytest.mark.parametrize(
    "changes",
    [
        {"compress_shards": False},
        {"compress_shards": False, "activation_type": ("residual", "mlp"), "storage_dtype": "bfloat16"},
        {"format": "safetensors", "activation_type": ("attn", "residual"), "layers_to_extract": ()},
        {"format": "safetensors", "storage_dtype": "float16", "overlong": "skip", "max_seq_length": 1200},
        {"format": "safetensors", "storage_dtype": "float8_e4m3", "activation_type": ("residual", "mlp")},
        {"format": "safetensors", "machine_id": 1, "total_machines": 3},
        {"format": "safetensors", "max_tokens_total": 9000, "window_samples": 4},
        {"format": "safetensors", "keep_tokens": ("cells",), "activation_type": ("residual", "mlp")},
    ],
    ids=[
        "pickle",
        "pickles of two sites",
        "safetensors",
        "safetensors, some left out",
        "float8",
        "a share",
        "so many tokens",
        "cells",
    ],
)
def test_the_count_is_what_the_run_writes(planned: Callable[..., PlanConfig], changes: dict[str, Any]) -> None:
    config = planned(**changes)
    run = planned_run(config)
    work = count_dataset(config, run.checkpoint(), run.form, devices=1)
    done = extract(the_run(config))
    files = [file for shard in done.manifest.shards for file in shard.files]
    written = {kind: sum(file.bytes for file in files if file.kind == kind) for kind in ("activations", "statistics")}
    assert (work.output.shard_files, work.output.statistics_files) == (written["activations"], written["statistics"])
    assert (work.output.shards, work.output.files) == (len(done.manifest.shards), len(files))
    assert (work.samples, work.tokens, work.computed_tokens) == (done.samples, done.tokens, done.computed_tokens)
    assert work.output.shards > 1


def test_several_hosts_count_what_one_does(planned: Callable[..., PlanConfig]) -> None:
    config = planned(format="safetensors", batch_size=1, shard_size_gb=1.0)
    run = planned_run(config)
    alone = count_dataset(config, run.checkpoint(), run.form, devices=4)
    three = count_dataset(config, run.checkpoint(), run.form, devices=4, hosts=3)
    assert (three.samples, three.tokens, three.own_pairs) == (alone.samples, alone.tokens, alone.own_pairs)
    assert three.output.activations == alone.output.activations
    assert (alone.output.shards, three.output.shards) == (1, 3)
    assert {rows for rows, _ in three.steps} == {12}
