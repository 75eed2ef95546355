"""Keywords give the same settings as flags; errors name the keyword."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from layertap.config.arguments import parse
from layertap.config.extract import ExtractConfig
from layertap.config.keywords import from_keywords
from layertap.errors import UsageError

SAME: list[tuple[dict[str, Any], str]] = [
    ({"layers_to_extract": [6, 12]}, "--layers_to_extract 6 12"),
    ({"layers_to_extract": 6}, "--layers_to_extract 6"),
    ({"layers_to_extract": range(3)}, "--layers_to_extract 0-2"),
    ({"layers_to_extract": np.arange(3)}, "--layers_to_extract 0-2"),
    ({"layers_to_extract": "1-3"}, "--layers_to_extract 1-3"),
    ({"layers_to_extract": ["1-2", "5"]}, "--layers_to_extract 1-2,5"),
    ({"layers_to_extract": "all"}, "--layers_to_extract all"),
    ({"activation_type": "mlp"}, "--activation_type mlp"),
    ({"activation_type": ["mlp", "attn"]}, "--activation_type mlp attn"),
    ({"output_dir": Path("here")}, "--output_dir here"),
    ({"shard_size_gb": 2}, "--shard_size_gb 2"),
    ({"batch_size": np.int64(3)}, "--batch_size 3"),
    ({"upload_to": "gs://b/p"}, "--upload_to gs://b/p"),
    ({"keep_tokens": "cells"}, "--keep_tokens cells"),
    ({"include_answer": True}, "--include_answer"),
    ({"adapter": "a"}, "--adapter a"),
    ({"max_tasks": None}, ""),
]


@pytest.mark.parametrize(("given", "flags"), SAME, ids=[flags or "none" for _, flags in SAME])
def test_a_call_and_a_command_are_the_same_run(given: dict[str, Any], flags: str) -> None:
    by_flags = parse(ExtractConfig, f"--dataset_path t.jsonl {flags}".split(), prog="layertap extract")
    assert from_keywords(ExtractConfig, {"dataset_path": "t.jsonl", **given}) == by_flags


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"bach_size": 2}, "bach_size: there is no such setting; do you mean batch_size"),
        ({"batch_size": "2"}, "batch_size='2': give a whole number or None"),
        ({"batch_size": True}, "batch_size=True"),
        ({"include_answer": 1}, "include_answer=1: give True or False"),
        ({"format": "parquet"}, "format='parquet': give 'pickle', 'safetensors'"),
        ({"layers_to_extract": []}, "no layer is given"),
        ({"layers_to_extract": [1.5]}, "layers_to_extract=1.5"),
        ({"activation_type": "resid"}, "activation_type='resid'"),
        ({"row_length": 1000}, "multiple of 256"),
        ({"metrics_port": 1}, "metrics_port: is a setting of `layertap extract`, but has no effect here"),
    ],
    ids=lambda it: str(it)[:40],
)
def test_what_is_wrong_is_named(given: dict[str, Any], message: str) -> None:
    groups = ("", "input", "prompt", "model", "tap", "output", "cloud")
    with pytest.raises(UsageError, match=message):
        from_keywords(ExtractConfig, {"dataset_path": "t.jsonl", **given}, groups)
