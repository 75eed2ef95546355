"""`layertap plan` as a user calls it, and as docs/tpu.md prints it."""

import json
import re
import shlex
from pathlib import Path

import commands
import pytest

from layertap.cli import main

PRINTED = re.search(
    r"    (layertap plan --model 7b .*?)\n\n(    run .*?)\n\n", (commands.ROOT / "docs/tpu.md").read_text(), re.DOTALL
)
Captured = pytest.CaptureFixture[str]


def plan(*flags: str | Path) -> int:
    return main(["plan", *map(str, flags)])


def test_in_words_and_as_json(capsys: Captured) -> None:
    flags = ("--model", "Qwen/Qwen2.5-7B", "--accelerator", "h200x1", "--tokens", "1000000", "--format", "safetensors")
    assert plan(*flags, "--price_per_hour", "3.5", "--layers_to_extract", "6", "13") == 0
    text = capsys.readouterr().out
    assert "residual of layers 6, 13 (runs 14 of 28 layers)" in text
    assert "14,336 bytes of activations per token" in text
    assert "bottleneck: " in text
    assert "for computing" in text
    assert plan(*flags, "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert document["work"]["output"]["activations"] == 10**6 * 28 * 7168
    assert document["fit"]["memory"] > document["weight_bytes"]
    slow, fast = document["times"]["slow"], document["times"]["fast"]
    assert slow == fast > 0, "one writer is the bottleneck, whatever the device does"
    assert all(assumption["source"] for assumption in document["assumptions"])


def test_without_an_accelerator_what_depends_on_no_machine_is_told(
    tiny_model: Path, few_tasks: Path, capsys: Captured
) -> None:
    flags = ("--model", tiny_model, "--dataset_path", few_tasks, "--format", "safetensors", "--price_per_gb_month", "2")
    assert plan(*flags) == 0
    text = capsys.readouterr().out
    names = [line.split(" ", 1)[0] for line in text.splitlines() if not line.startswith(" ")]
    assert names == ["run", "output", "cost", "more"]
    assert "(exact)" in text
    assert text.endswith("more     --accelerator NAME, such as v5litepod-8 or h100x1, adds memory, time and cost\n")
    assert plan(*flags, "--accelerator", "cpu") == 0
    assert capsys.readouterr().out == text + " " * 9 + "to measure the speed of this machine, run with --max_tasks 10\n"

    assert plan(*flags, "--json") == 0
    without = json.loads(capsys.readouterr().out)
    assert plan(*flags, "--json", "--accelerator", "h100x1") == 0
    on_one_gpu = json.loads(capsys.readouterr().out)
    unknown = {"accelerator", "mesh", "batch_size", "fits", "fit", "disk_bytes_of_a_host", "times", "tokens_per_second"}
    assert {name for name, value in without.items() if value is None} == unknown
    assert without["costs"] == {"compute_slow": None, "compute_fast": None} | {
        "storage_per_month": on_one_gpu["costs"]["storage_per_month"]
    }
    for document in (without, on_one_gpu):
        for name in ("steps", "computed_tokens", "seconds"):
            document["work"].pop(name)
    same = without.keys() - unknown - {"costs", "assumptions"}
    assert {name: without[name] for name in same} == {name: on_one_gpu[name] for name in same}


@pytest.mark.parametrize("flags", [(), ("--price_per_hour", "2")])
def test_usual_prompts_without_an_accelerator(flags: tuple[str, ...], capsys: Captured) -> None:
    assert plan("--model", "7b", "--tokens", "1000000", *flags) == 0
    text = capsys.readouterr().out
    assert "\ncost" not in text
    assert "\nassumed  median prompt" in text


def test_it_says_whether_the_prefix_was_counted_or_assumed(tiny_model: Path, capsys: Captured) -> None:
    flags = ("--model", "7b", "--tokens", "100000000")
    once, begins = "of all tokens are a prefix that is computed once", "every prompt begins with the same: 298 tokens ("
    assert plan(*flags) == 0
    text = capsys.readouterr().out
    assert f"18.5% {once} (assumed)\n" in text
    assert (
        f"{begins}output-from-examples-v0 in Qwen 2.5's tokenizer; a run computes it once; --tokenizer FOLDER" in text
    )
    assert plan(*flags, "--tokenizer", tiny_model) == 0
    text = capsys.readouterr().out
    assert f"{once}\n" in text
    assert "every prompt begins" not in text
    assert plan(*flags, "--no_share_prefix") == 0
    text = capsys.readouterr().out
    assert "prefix" not in text
    assert "every prompt begins" not in text
    assert plan(*flags, "--prompt_template", "my_templates") == 0
    text = capsys.readouterr().out
    assert once not in text
    assert "every prompt begins with the same: 0 tokens (unknown without a tokenizer, so none is left out;" in text


def test_the_plan_of_the_guide_is_as_printed(capsys: Captured) -> None:
    assert PRINTED is not None
    assert main(shlex.split(PRINTED[1].replace("\\\n", " "))[1:]) == 0
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert lines == [line.strip() for line in PRINTED[2].splitlines()]


@pytest.mark.parametrize(
    ("given", "says", "planned"),
    [
        ([], "recommended --batch_size 8, rows of 4,096 tokens per chip: ", 8),
        (["--batch_size", "2"], "memory   --batch_size 2, rows of", 2),
        (["--batch_size", "16"], "--batch_size 16 does not fit; recommended --batch_size 8, rows of", 16),
    ],
)
def test_a_batch_size_is_recommended_and_a_given_one_kept(
    given: list[str], says: str, planned: int, capsys: Captured
) -> None:
    flags = ("--model", "7b", "--accelerator", "v5litepod-64", "--tokens", "10000000", *given)
    assert plan(*flags) == 0
    assert says in capsys.readouterr().out
    assert plan(*flags, "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["batch_size"], document["fits"]) == (planned, planned != 16)
    assert max(step["rows"] for step in document["work"]["steps"]) == 64 * planned


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--tokens 5 --accelerator abacus", "--accelerator abacus: not known. Give a TPU"),
        ("", "either --dataset_path"),
        ("--tokens 5 --dataset_path x", "either --dataset_path"),
        ("--tokens 5 --sharded_dataset_dir x", "give the dataset before it was split"),
        ("--tokens 0", "--tokens must not be 0"),
        ("--tokens 5 --workers 0", "--workers must not be 0"),
        ("--tokens 5 --price_per_hour -1", "--price_per_hour must not be -1"),
        ("--tokens 5 --disk_gb_per_second 0", "--disk_gb_per_second must be more than 0"),
        ("--tokens 5 --accelerator h100x1 --layers_to_extract 28", "has layers 0 to 27"),
        ("--dataset_path x --accelerator h200x1", "give --tokenizer FOLDER"),
    ],
)
def test_what_makes_no_sense_is_refused(flags: str, message: str, capsys: Captured) -> None:
    assert plan("--model", "7b", *flags.split()) == 2
    assert message in capsys.readouterr().err


def test_a_size_can_be_counted_with_a_tokenizer_from_elsewhere(
    tiny_model: Path, few_tasks: Path, capsys: Captured
) -> None:
    data = ("--dataset_path", few_tasks, "--tokenizer", tiny_model, "--predictions_per_task", "1")
    flags = ("--model", "0.5b", *data, "--accelerator", "a100x1", "--format", "safetensors")
    assert plan(*flags) == 0
    assert "(exact)" in capsys.readouterr().out
    assert plan(*flags, "--workers", "3") == 0
    assert "exact" not in capsys.readouterr().out, "three workers close three last shards"


def test_a_number_of_tokens_to_stop_at_is_for_one_host(tiny_model: Path, few_tasks: Path, capsys: Captured) -> None:
    flags = ("--model", tiny_model, "--max_tokens_total", "5000")
    assert plan(*flags, "--dataset_path", few_tasks, "--accelerator", "v5litepod-16") == 2
    assert "--max_tokens_total does not work with the 4 hosts of v5litepod-16" in capsys.readouterr().err
    assert plan(*flags, "--tokens", "5000") == 2
    assert "--max_tokens_total and --tokens" in capsys.readouterr().err


def test_with_a_url_as_output_no_disk_is_on_the_way(capsys: Captured) -> None:
    flags = ("--model", "7b", "--accelerator", "v5litepod-64", "--tokens", "100000000", "--format", "safetensors")
    found = {}
    for place in ("./activations", "gs://bucket/activations"):
        assert plan(*flags, "--output_dir", place, "--uploads_at_once", "2", "--json") == 0
        found[place] = json.loads(capsys.readouterr().out)
    stages = [{stage["name"] for stage in document["times"]["stages"]} for document in found.values()]
    assert stages[0] ^ stages[1] == {"disk", "network"}
    assert [document["times"]["bottleneck"] for document in found.values()] == ["disk", "network"]
    assert [document["memory_of_shards"] for document in found.values()] == [0, 5 * 10**9]
    assert found["gs://bucket/activations"]["times"]["slow"] < found["./activations"]["times"]["slow"] / 2
