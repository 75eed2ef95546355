"""The flags of a fleet's workers, read before there is a fleet: wrong ones would be found out by many billed machines.

Beside the room of TPUs and not in it, because that knows nothing of extraction.
"""

import shlex
from dataclasses import replace

from layertap.config.arguments import parse
from layertap.config.extract import ExtractConfig
from layertap.errors import UsageError


def check_worker_flags(text: str, workers: int) -> None:
    """Read `--extract_flags` as the first and the last worker will; raises UsageError where one could not start.

    It also does where they would do the same work.
    """
    first, last = (_config(text, worker) for worker in (0, workers - 1))
    if workers > 1 and first.sharded.sharded_dataset_dir is None and _reads(first) == _reads(last):
        raise UsageError(
            "--extract_flags: every worker would do the same work. Give each its own by {worker}, as --machine_id"
            f" {{worker}} --total_machines {workers}, or --use_sharded_dataset"
        )


def _config(text: str, worker: int) -> ExtractConfig:
    flags = text.replace("{worker}", str(worker))
    try:
        words = ["--worker_id", str(worker), *shlex.split(flags)]
        return parse(ExtractConfig, words, prog="layertap extract")
    except (UsageError, ValueError) as error:  # of shlex: a quote without its pair
        raise UsageError(f"--extract_flags, for worker {worker}: {error}") from error
    except SystemExit as error:  # tyro has said what is wrong
        raise UsageError(f"--extract_flags {flags}: these are not flags of `layertap extract`") from error


def _reads(config: ExtractConfig) -> ExtractConfig:
    """What decides a run's work: all but who does it and where it goes."""
    here = ExtractConfig(dataset_path="")
    names = ("output_dir", "checkpoint_dir", "upload", "metrics_port")
    return replace(config, worker_id=0, **{name: getattr(here, name) for name in names})
