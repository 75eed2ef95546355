"""The commands: each calls one room with its settings, prints the result and returns the exit
status.

A command imports its room only when it runs. So `layertap verify` starts without JAX, and `layertap
--help` also without numpy.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from importlib import import_module
from typing import Any

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
from layertap.core.strict_json import dump_json
from layertap.errors import InputError, LayertapError
from layertap.process.supervised import is_child, supervise
from layertap.tpu.config import TpuConfig


def extract(config: ExtractConfig) -> int:
    """Extract activations: alone, or as one or several workers on a sharded dataset."""
    if config.hosts.multihost and not is_child():
        return supervise()
    try:
        if config.sharded.sharded_dataset_dir is None:
            _extract_all(config)
        else:
            print(_work(config))
    except KeyboardInterrupt:
        if config.checkpointing:
            print("committed shards are safe; run the same command to resume", file=sys.stderr)
        raise
    return 0


def _extract_all(config: ExtractConfig) -> None:
    from layertap.pipeline.run import extract

    summary = extract(config)
    print(summary.describe())
    if (reason := summary.nothing_extracted) is not None:
        raise InputError(f"{reason}; {summary.output_dir}/metadata.json lists them")


def _work(config: ExtractConfig) -> str:
    if config.sharded.engine == "local":
        from layertap.fleet.engines.local import run_local

        return run_local(config)
    if config.sharded.engine == "ray":
        from layertap.fleet.engines.ray import run_ray

        return run_ray(config)
    from layertap.fleet.worker import work

    summary = work(config)
    if summary.nothing_extracted:
        raise InputError(
            f"{summary.describe()}. Nothing was extracted: every task or sample of these shards was left out. The"
            " metadata.json of each shard lists them"
        )
    return summary.describe()


def streams(config: StreamsConfig) -> int:
    """Split a dataset into one file for each worker."""
    from layertap.fleet.streams import create_streams

    print(create_streams(config).describe())
    return 0


def fleet(command: str) -> Callable[[Any], int]:
    """Return the function of that name in `fleet/commands.py`; import it only when it runs."""

    def run(config: CreateShardsConfig | ShardsStatusConfig | ResetShardsConfig) -> int:
        return getattr(import_module("layertap.fleet.commands"), command)(config)

    return run


def demo(config: DemoConfig) -> int:
    """Create a tiny model and tasks, and extract from them."""
    from layertap.demo.run import demo

    demo(config)
    return 0


def verify(config: VerifyConfig) -> int:
    """Check output, and report what is wrong."""
    from layertap.fleet.verification import verify_at

    with _bar("verify") as show:
        report = verify_at(config, show)
    print(dump_json(report.to_json(), indent=2) if config.json else report.describe())
    return 0 if report.sound else LayertapError.exit_status


def inspect(config: InspectConfig) -> int:
    """Show a shard or a sample."""
    from layertap.objects import open_store
    from layertap.view.command import inspect
    from layertap.view.grids import colours_of

    with closing(open_store(config.path)) as store, _bar("inspect") as show:
        text = inspect(config, store, show, colours_of(sys.stdout))
    print(text)
    return 0


def export(config: ExportConfig) -> int:
    """Copy activations into another format."""
    from layertap.export.command import export

    try:
        with _bar("export") as show:
            text = export(config, show)
    except KeyboardInterrupt:
        print("the shards written so far are safe; run the same command to resume", file=sys.stderr)
        raise
    print(text)
    return 0


def view(config: ViewConfig) -> int:
    """Write the page of a run."""
    if config.terminal:
        from layertap.view.command import inspection_of

        return inspect(inspection_of(config))
    from layertap.view.html.write import write_page

    with _bar("view") as show:
        path, sentence = write_page(config, show)
    print(sentence)
    if config.open:
        import webbrowser

        webbrowser.open(path.resolve().as_uri())
    return 0


@contextmanager
def _bar(name: str) -> Iterator[Callable[[int, int], None]]:
    """Show a progress bar of bytes, on a terminal only. Call it with the bytes done and the
    total.
    """
    from layertap.core.bar import Bar

    with Bar(desc=name, unit="B", unit_scale=True, leave=False, disable=None) as bar:

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield show


def stats(config: StatsConfig) -> int:
    """Print statistics, merged over folders."""
    from layertap.objects import open_store
    from layertap.shards.shares import measure_shares, norms_are_quick
    from layertap.shards.statistics_files import merge_runs, open_runs
    from layertap.shards.statistics_page import describe_statistics, statistics_to_json

    with ExitStack() as stack:
        runs = open_runs([stack.enter_context(closing(open_store(path))) for path in config.paths])
        statistics = merge_runs(runs)
        quick = all(norms_are_quick(manifest) for _, manifest in runs)
        wanted = config.norms == "all" or (config.norms == "auto" and quick)
        shares = measure_shares(runs, stack.enter_context(_bar("stats"))) if wanted else None
    if config.json:
        print(dump_json(statistics_to_json(statistics, shares), indent=2))
    else:
        print(describe_statistics(statistics, shares))
    return 0


def compare(config: CompareConfig) -> int:
    """Compare a dump with its model, and say what the dump holds."""
    from layertap.compare.command import compare
    from layertap.compare.report import describe, to_json

    comparison = compare(config)
    print(dump_json(to_json(comparison), indent=2) if config.json else describe(comparison))
    return 0 if comparison.sound else LayertapError.exit_status


def plan(config: PlanConfig) -> int:
    """Estimate what a run needs."""
    from layertap.plan.command import make_plan

    plan = make_plan(config, lambda message: print(f"{message} ...", file=sys.stderr, flush=True))
    print(dump_json(plan.to_json(), indent=2) if config.json else plan.describe())
    return 0


def tpu(command: str) -> Callable[[Any], int]:
    """Return the function of that name in `tpu/commands.py`; import it only when it runs."""

    def run(config: TpuConfig) -> int:
        return getattr(import_module("layertap.tpu.commands"), command)(config)

    return run
