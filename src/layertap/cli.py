"""The command line: `layertap COMMAND ...`.

tyro makes the flags from the dataclasses in `config/`. They have underscores, as the field names
do; hyphens work too. An error that Layertap raises on purpose is printed as one message without a
traceback. The exit status is 0 for success, 2 for wrong input or usage, 130 after an interruption
that can be resumed, 141 when nobody reads the output any more, and 1 for anything else.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import layertap
from layertap import commands
from layertap.config.arguments import parse
from layertap.config.compare import CompareConfig
from layertap.config.demo import DemoConfig
from layertap.config.export import ExportConfig
from layertap.config.extract import ExtractConfig
from layertap.config.fleet import (
    CreateShardsConfig,
    ResetShardsConfig,
    ShardsStatusConfig,
    StreamsConfig,
    VerifyConfig,
)
from layertap.config.inspect import InspectConfig
from layertap.config.plan import PlanConfig
from layertap.config.upload import StatsConfig
from layertap.config.view import ViewConfig
from layertap.errors import InputError
from layertap.process.ending import run_guarded
from layertap.tpu.config import (
    CreateConfig,
    DeleteConfig,
    ListConfig,
    RecreateConfig,
    StatusConfig,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `layertap` with these arguments (default: the process's own); return the exit status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given in (["--version"], ["-V"]):
        return run_guarded(_print_version)
    return _choose(COMMANDS, given, "layertap")


def extract_main() -> int:
    """Run `extract_activations.py`, which is `layertap extract`."""
    return _run_script("extract", "extract_activations.py")


def streams_main() -> int:
    """Run `create_dataset_streams.py`, which is `layertap streams`."""
    return _run_script("streams", "create_dataset_streams.py")


def _choose(offered: "Mapping[str, Command | Group]", given: list[str], prog: str) -> int:
    """Run the command that the first word names, or list the commands."""
    command = offered.get(given[0]) if given else None
    if isinstance(command, Group):
        return _choose(command.commands, given[1:], f"{prog} {given[0]}")
    if command is not None:
        return _run_command(command, given[1:], f"{prog} {given[0]}")
    return run_guarded(lambda: _explain(offered, given, prog))


def _explain(offered: "Mapping[str, Command | Group]", given: list[str], prog: str) -> int:
    asked = bool(given) and given[0] in ("-h", "--help", "help")
    if given and not asked:
        near = get_close_matches(given[0], offered, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        print(f"error: {prog} has no command {given[0]!r}{hint}", file=sys.stderr)
    print(_usage(offered, prog), file=sys.stdout if asked else sys.stderr)
    return 0 if asked else InputError.exit_status


def _print_version() -> int:
    print(f"layertap {layertap.__version__}")
    return 0


def _run_script(name: str, script: str) -> int:
    command = COMMANDS[name]
    assert isinstance(command, Command)
    return _run_command(command, sys.argv[1:], f"python {script}")


def _run_command(command: "Command", words: Sequence[str], prog: str) -> int:
    """Read the flags, run the command, and turn errors into a message and an exit status."""
    example = f"{prog} {command.example}"
    return run_guarded(lambda: command.run(parse(command.config, words, prog=prog, example=example)))


@dataclass(frozen=True)
class Command:
    config: type
    run: Callable[[Any], int]
    summary: str
    example: str


@dataclass(frozen=True)
class Group:
    commands: Mapping[str, Command]
    summary: str


_ZONES = "--zones us-central1-a,us-central1-b"
_DATASET = "gs://my-bucket/dataset"

_TPU_COMMANDS = {
    "create": Command(
        CreateConfig,
        commands.tpu("create"),
        "create the missing workers; with --watch, keep them running",
        "--zones us-central1-a --workers_per_zone 4 --dry_run",
    ),
    "status": Command(StatusConfig, commands.tpu("status"), "count the workers in each zone", _ZONES),
    "recreate-preempted": Command(
        RecreateConfig, commands.tpu("recreate"), "replace lost workers with new ones of the same kind", _ZONES
    ),
    "delete": Command(DeleteConfig, commands.tpu("delete"), "delete the fleet, after you confirm", "--dry_run"),
    "list": Command(ListConfig, commands.tpu("list_members"), "list every TPU of the fleet", "--name_prefix tpu"),
}

_SHARDS_COMMANDS = {
    "create": Command(
        CreateShardsConfig,
        commands.fleet("create"),
        "split a dataset into shards that workers claim",
        "--dataset_path t.jsonl --output dataset --num_shards 8",
    ),
    "status": Command(
        ShardsStatusConfig,
        commands.fleet("status"),
        "show which shards are done, what each worker does, how fast, and the time left",
        f"{_DATASET} --watch",
    ),
    "reset": Command(
        ResetShardsConfig,
        commands.fleet("reset_shards"),
        "free shards, so that workers extract them again",
        f"{_DATASET} 3 7",
    ),
}

COMMANDS: Mapping[str, Command | Group] = {
    "extract": Command(
        ExtractConfig,
        commands.extract,
        "extract activations from a dataset; resumes where it stopped",
        "--dataset_path tasks.jsonl --layers_to_extract 6,12",
    ),
    "streams": Command(
        StreamsConfig,
        commands.streams,
        "split a dataset into one JSONL file for each worker",
        "--dataset_path tasks.jsonl --num_streams 8",
    ),
    "fleet": Group({"status": _SHARDS_COMMANDS["status"]}, "show what the workers do (the same as shards status)"),
    "shards": Group(_SHARDS_COMMANDS, "create and manage a sharded dataset for many workers"),
    "verify": Command(VerifyConfig, commands.verify, "read output back and check every byte", "./activations"),
    "inspect": Command(
        InspectConfig,
        commands.inspect,
        "show the samples, text and norms of a shard, or one sample token by token",
        "./activations --sample 7 --layer 12",
    ),
    "view": Command(
        ViewConfig,
        commands.view,
        "write a web page that shows a run, its samples and its grids",
        "./activations --out page.html",
    ),
    "stats": Command(
        StatsConfig,
        commands.stats,
        "print norms, mean and standard deviation for each layer and site",
        "./activations",
    ),
    "export": Command(
        ExportConfig,
        commands.export,
        "copy activations into the format of another trainer; resumes where it stopped",
        "./activations ./for_saelens --to saelens --layers 12",
    ),
    "compare": Command(
        CompareConfig,
        commands.compare,
        "compare another tool's activations with ours in float32, and say what they are",
        "dump.safetensors --model_path Qwen/Qwen2.5-0.5B",
    ),
    "plan": Command(
        PlanConfig,
        commands.plan,
        "estimate what a run needs: bytes, memory, time and cost",
        "--tokens 1000000 --model 7b --accelerator v5litepod-8",
    ),
    "tpu": Group(_TPU_COMMANDS, "create, watch and delete fleets of TPUs on Google Cloud"),
    "demo": Command(
        DemoConfig,
        commands.demo,
        "create a tiny model and tasks, extract activations, and verify them",
        "--num_tasks 8",
    ),
}


def _usage(offered: Mapping[str, Command | Group], prog: str) -> str:
    width = max(map(len, offered)) + 2
    lines = [f"  {name:<{width}}{command.summary}" for name, command in offered.items()]
    hint = f"{prog} COMMAND --help lists the flags of a command."
    return "\n".join((f"usage: {prog} COMMAND [FLAGS]", "", *lines, "", hint))
