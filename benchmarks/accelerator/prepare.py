"""A checkpoint with random weights and tasks, made on the spot into the work folder."""

from pathlib import Path

from benchmarks.accelerator.config import PartConfig
from benchmarks.accelerator.part import Cases, Figures
from benchmarks.accelerator.sizes import contender, sizes_of, tasks_file
from benchmarks.workload import model_folder, seconds_of
from layertap.demo.checkpoint import write_checkpoint
from layertap.demo.tasks import make_tasks, write_tasks


def cases(config: PartConfig) -> Cases:
    """Tasks first: they take a second."""
    return {"tasks": lambda: _tasks(config), "checkpoint": lambda: _checkpoint(config)}


def _tasks(config: PartConfig) -> Figures:
    count = sizes_of(config).tasks
    return {"tasks": count, "seconds": seconds_of(lambda: write_tasks(tasks_file(config), make_tasks(count)))}


def _checkpoint(config: PartConfig) -> Figures:
    folder = model_folder(contender(config))
    seconds = seconds_of(lambda: write_checkpoint(folder, sizes_of(config).checkpoint))
    megabytes = sum(path.stat().st_size for path in Path(folder).iterdir()) / 1e6
    return {"size": sizes_of(config).checkpoint, "megabytes": megabytes, "seconds": seconds}
