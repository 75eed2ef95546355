"""The command line: `layertap COMMAND ...`.

Flags are made from the dataclasses in `config.py` by tyro, with underscores as in the field names; hyphens are
accepted too. Errors that Layertap raises on purpose are printed as one message without a traceback, and decide the
exit status: 0 done, 2 wrong input or usage, 1 anything else, 130 interrupted in a state that can be resumed.

A command's room is imported when it runs, not before: `layertap --help` and `layertap verify` start without JAX.
"""

import json
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any, TypeVar

import tyro
from tqdm import tqdm

import layertap
from layertap.config import ExtractConfig, local_path
from layertap.demo.config import DemoConfig
from layertap.errors import InputError, LayertapError, UsageError
from layertap.extract.supervised import is_child, supervise
from layertap.fleet.config import (
    CreateShardsConfig,
    FleetStatusConfig,
    ResetShardsConfig,
    ShardsStatusConfig,
    StreamsConfig,
    VerifyConfig,
)
from layertap.inspection.config import InspectConfig
from layertap.plan.config import PlanConfig
from layertap.process import guarded
from layertap.store.config import StatsConfig
from layertap.store.folder import Folder, LocalFolder
from layertap.store.url_folder import UrlFolder
from layertap.tpu.config import (
    CreateConfig,
    DeleteConfig,
    FleetConfig,
    ListConfig,
    RecreateConfig,
    StatusConfig,
    TpuConfig,
)

T = TypeVar("T")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `layertap` with these arguments (default: the process's own); returns the exit status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given in (["--version"], ["-V"]):
        return guarded(_print_version)
    return _choose(_COMMANDS, given, "layertap")


def extract_main() -> int:
    """Run `extract_activations.py`, which is `layertap extract`."""
    return run_command(ExtractConfig, _extract, sys.argv[1:], prog="extract_activations.py")


def streams_main() -> int:
    """Run `create_dataset_streams.py`, which is `layertap streams`."""
    return run_command(StreamsConfig, _streams, sys.argv[1:], prog="create_dataset_streams.py")


def _choose(commands: "Mapping[str, _Command | _Group]", given: list[str], prog: str) -> int:
    """Run the command that the first word names, or say which there are."""
    command = commands.get(given[0]) if given else None
    if isinstance(command, _Group):
        return _choose(command.commands, given[1:], f"{prog} {given[0]}")
    if command is not None:
        return run_command(command.config, command.run, given[1:], prog=f"{prog} {given[0]}")
    return guarded(lambda: _explain(commands, given, prog))


def _explain(commands: "Mapping[str, _Command | _Group]", given: list[str], prog: str) -> int:
    asked = bool(given) and given[0] in ("-h", "--help")
    if given and not asked:
        print(f"error: {prog} has no command {given[0]!r}", file=sys.stderr)
    print(_usage(commands, prog), file=sys.stdout if asked else sys.stderr)
    return 0 if asked else InputError.exit_status


def _print_version() -> int:
    print(f"layertap {layertap.__version__}")
    return 0


def run_command(config_type: type[T], run: Callable[[T], int], arguments: Sequence[str], *, prog: str) -> int:
    """Read `arguments` into a `config_type`, run it, and turn errors into a message and an exit status."""
    return guarded(lambda: run(tyro.cli(config_type, prog=prog, args=arguments, use_underscores=True)))


def _extract(config: ExtractConfig) -> int:
    if config.hosts.multihost and not is_child():
        return supervise()
    try:
        print(_extract_all(config) if config.sharded.sharded_dataset_dir is None else _work(config))
    except KeyboardInterrupt:
        if config.checkpointing:
            print("committed shards are safe; the same command goes on from there", file=sys.stderr)
        raise
    return 0


def _extract_all(config: ExtractConfig) -> str:
    from layertap.extract.run import extract
    from layertap.extract.summary import describe

    return describe(extract(config), config)


def _work(config: ExtractConfig) -> str:
    if config.sharded.engine == "local":
        from layertap.fleet.local_engine import run_local

        return run_local(config)
    if config.sharded.engine == "ray":
        from layertap.fleet.ray_engine import run_ray

        return run_ray(config)
    from layertap.fleet.worker import work

    return work(config).describe()


def _streams(config: StreamsConfig) -> int:
    from layertap.fleet.streams import create_streams

    print(create_streams(config).describe())
    return 0


def _fleet(command: str) -> Callable[[Any], int]:
    """The function of that name in `fleet/commands.py`, imported when it runs."""

    def run(config: CreateShardsConfig | ShardsStatusConfig | ResetShardsConfig | FleetStatusConfig) -> int:
        return getattr(import_module("layertap.fleet.commands"), command)(config)

    return run


def _demo(config: DemoConfig) -> int:
    from layertap.demo.run import demo

    demo(config)
    return 0


def _verify(config: VerifyConfig) -> int:
    from layertap.fleet.verification import verify_at

    with _bar("verify") as show:
        report = verify_at(config, _opened, show)
    print(json.dumps(report.to_json(), indent=2) if config.json else report.describe())
    return 0 if report.sound else LayertapError.exit_status


def _inspect(config: InspectConfig) -> int:
    from layertap.inspection.command import inspect

    with _opened(config.path) as folder, _bar("inspect") as show:
        text = inspect(config, folder, show)
    print(text)
    return 0


@contextmanager
def _bar(name: str) -> Iterator[Callable[[int, int], None]]:
    """A bar of bytes, on a terminal only; called with how many of how many are done."""
    with tqdm(desc=name, unit="B", unit_scale=True, leave=False, disable=None) as bar:

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield show


@contextmanager
def _opened(place: str) -> Iterator[Folder]:
    """An output folder, of this machine or behind a URL."""
    if "://" not in place:
        yield LocalFolder(local_path(place))
        return
    with closing(UrlFolder(place)) as folder:
        yield folder


def _stats(config: StatsConfig) -> int:
    from layertap.store.statistics_files import merge_folders
    from layertap.store.statistics_table import describe, to_json

    with ExitStack() as stack:
        statistics = merge_folders([stack.enter_context(_opened(path)) for path in config.paths])
    print(json.dumps(to_json(statistics), indent=2) if config.json else describe(statistics))
    return 0


def _plan(config: PlanConfig) -> int:
    from layertap.plan.command import make_plan
    from layertap.plan.report import describe

    plan = make_plan(config, lambda message: print(f"{message} ...", file=sys.stderr, flush=True))
    print(json.dumps(plan.to_json(), indent=2) if config.json else describe(plan))
    return 0


def _check_extract_flags(text: str, workers: int) -> None:
    """Read the flags as the first and the last worker will: wrong ones would be found out by a whole, billed fleet.

    Here, because the room of TPUs knows nothing of extraction. Raises UsageError.
    """
    first, last = (_extract_config(text, worker) for worker in (0, workers - 1))
    if workers > 1 and first.sharded.sharded_dataset_dir is None and _reads(first) == _reads(last):
        raise UsageError(
            "--extract_flags: every worker would do the same work. Give each its own by {worker}, as --machine_id"
            f" {{worker}} --total_machines {workers}, or --use_sharded_dataset"
        )


def _extract_config(text: str, worker: int) -> ExtractConfig:
    flags = text.replace("{worker}", str(worker))
    try:
        words = ["--worker_id", str(worker), *shlex.split(flags)]
        return tyro.cli(ExtractConfig, prog="layertap extract", args=words, use_underscores=True)
    except (UsageError, ValueError) as error:  # of shlex: a quote without its pair
        raise UsageError(f"--extract_flags, for worker {worker}: {error}") from error
    except SystemExit as error:  # tyro has said what is wrong
        raise UsageError(f"--extract_flags {flags}: these are not flags of `layertap extract`") from error


def _reads(config: ExtractConfig) -> ExtractConfig:
    """What decides a run's work: all but who does it and where it goes."""
    here = ExtractConfig(dataset_path="")
    names = ("output_dir", "checkpoint_dir", "upload", "metrics_port")
    return replace(config, worker_id=0, **{name: getattr(here, name) for name in names})


def _tpu(command: str) -> Callable[[Any], int]:
    """The function of that name in `tpu/commands.py`, imported when it runs."""

    def run(config: TpuConfig) -> int:
        if isinstance(config, FleetConfig) and config.extract_flags is not None:
            _check_extract_flags(config.extract_flags, len(config.zone_list) * config.workers_per_zone)
        try:
            commands = import_module("layertap.tpu.commands")
        except ModuleNotFoundError as error:
            if error.name is None or error.name.partition(".")[0] not in ("google", "requests"):
                raise
            raise UsageError(f"no module {error.name}: managing TPUs needs pip install 'layertap[tpu-ops]'") from error
        return getattr(commands, command)(config)

    return run


@dataclass(frozen=True)
class _Command:
    config: type
    run: Callable[[Any], int]
    summary: str


@dataclass(frozen=True)
class _Group:
    commands: Mapping[str, _Command]
    summary: str


_TPU_COMMANDS = {
    "create": _Command(CreateConfig, _tpu("create"), "bring a fleet of TPU workers to strength; --watch keeps it so"),
    "status": _Command(StatusConfig, _tpu("status"), "count the workers, zone by zone"),
    "recreate-preempted": _Command(RecreateConfig, _tpu("recreate"), "replace lost TPUs, made as they were"),
    "delete": _Command(DeleteConfig, _tpu("delete"), "delete the fleet, after asking"),
    "list": _Command(ListConfig, _tpu("list_members"), "list every TPU of the fleet"),
}

_FLEET_COMMANDS = {
    "status": _Command(FleetStatusConfig, _fleet("fleet_status"), "who works on what, how fast, and how long still"),
}

_SHARDS_COMMANDS = {
    "create": _Command(CreateShardsConfig, _fleet("create"), "cut a dataset into shards that workers claim"),
    "status": _Command(ShardsStatusConfig, _fleet("status"), "which shards are done, claimed, failed and free"),
    "reset": _Command(ResetShardsConfig, _fleet("reset_shards"), "make shards free again"),
}

_COMMANDS: Mapping[str, _Command | _Group] = {
    "extract": _Command(ExtractConfig, _extract, "extract activations from a dataset; resumes where it was stopped"),
    "streams": _Command(StreamsConfig, _streams, "deal a dataset out to workers, one JSONL file each"),
    "fleet": _Group(_FLEET_COMMANDS, "see what the workers of a sharded dataset do"),
    "shards": _Group(_SHARDS_COMMANDS, "make a sharded dataset for many workers, and look after it"),
    "verify": _Command(VerifyConfig, _verify, "read an output folder back and check every byte of it"),
    "inspect": _Command(InspectConfig, _inspect, "show a shard: samples, text, norms; or one sample, token by token"),
    "stats": _Command(StatsConfig, _stats, "print norms, mean and deviation of each layer and site, over many workers"),
    "plan": _Command(PlanConfig, _plan, "say what a run would need: bytes, memory, time and cost"),
    "tpu": _Group(_TPU_COMMANDS, "create, watch, mend and delete fleets of TPUs in Google Cloud"),
    "demo": _Command(DemoConfig, _demo, "make a tiny model and tasks on the spot, extract from them, verify"),
}


def _usage(commands: Mapping[str, _Command | _Group], prog: str) -> str:
    width = max(map(len, commands)) + 2
    lines = [f"  {name:<{width}}{command.summary}" for name, command in commands.items()]
    return "\n".join((f"usage: {prog} COMMAND [FLAGS]   ({prog} COMMAND --help lists its flags)", "", *lines))
