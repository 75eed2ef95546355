"""What is counted beforehand is what a run then writes, to the byte."""

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest

from layertap.config.extract import ExtractConfig
from layertap.config.plan import PlanConfig
from layertap.extract.run import extract
from layertap.plan.planned import planned_run
from layertap.plan.workload import count_dataset


def the_run(config: PlanConfig) -> ExtractConfig:
    return ExtractConfig(**{field.name: getattr(config, field.name) for field in dataclasses.fields(ExtractConfig)})


@pytest.mark.parametrize(
    "changes",
    [
        {"compress_shards": False},
        {"compress_shards": False, "activation_type": ("residual", "mlp"), "storage_dtype": "bfloat16"},
        {"format": "safetensors", "activation_type": ("attn", "residual"), "layers_to_extract": ()},
        {"format": "safetensors", "storage_dtype": "float16", "overlong": "truncate", "max_seq_length": 600},
        {"format": "safetensors", "machine_id": 1, "total_machines": 3},
    ],
    ids=["pickle", "pickles of two sites", "safetensors", "safetensors, cut", "a share"],
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
