"""`layertap plan`: everything that is known before a run, in one piece."""

import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

from layertap.config.plan import PlanConfig
from layertap.extract import backend
from layertap.plan.accelerators import Accelerator, parse_accelerator
from layertap.plan.assumptions import (
    MEASURED_SPREAD,
    TPU_DISK_BYTES,
    TYPICAL_MEAN,
    TYPICAL_MEDIAN,
    TYPICAL_TEXT_BYTES,
    Assumption,
)
from layertap.plan.calibrate import Speed, measure_speed
from layertap.plan.estimate import (
    Costs,
    Times,
    costs,
    is_compressed,
    measured_times,
    pipelined,
    stages_on,
    stored_bytes_of,
)
from layertap.plan.memory import Fit, fit_on, mesh_shape, run_weight_bytes
from layertap.plan.planned import PlannedRun, planned_run
from layertap.plan.workload import Workload, count_dataset, usual_workload


@dataclass(frozen=True)
class Plan:
    """What a run would be."""

    run: PlannedRun
    accelerator: Accelerator
    mesh: str
    weight_bytes: int
    fit: Fit
    asked_rows: int | None
    """`--batch_size`, where it was given."""
    work: Workload
    stored_bytes: float
    """What lies on disks in the end, without manifests."""
    exact: bool
    """Whether `stored_bytes` is exact."""
    times: Times
    costs: Costs
    disk_bytes: float | None
    """What the disk of one host has room for; None: not known."""
    speed: Speed | None
    """What was measured, on cpu."""
    assumptions: tuple[Assumption, ...]

    def to_json(self) -> dict[str, Any]:
        """All of it as plain values."""
        work = asdict(replace(self.work, example=None, steps={}))
        del work["example"]
        work["steps"] = [{"rows": rows, "length": length, "count": n} for (rows, length), n in self.work.steps.items()]
        work |= {"computed_tokens": self.work.computed_tokens, "uncompressed_bytes": self.work.output.uncompressed}
        seconds = max(self.times.slow, 1e-9), max(self.times.fast, 1e-9)
        return {
            "model": self.run.config.model_path,
            "layers": list(self.run.form.layers),
            "sites": list(self.run.form.sites),
            "format": self.run.form.name,
            "storage_dtype": self.run.form.dtype.name,
            "accelerator": asdict(self.accelerator),
            "workers": self.run.config.workers,
            "mesh": self.mesh,
            "weight_bytes": self.weight_bytes,
            "batch_size": self.run.config.batch_size,
            "fits": self.asked_rows in (None, self.fit.rows),
            "fit": asdict(self.fit),
            "work": work,
            "bytes_per_token": self.run.form.bytes_per_token,
            "stored_bytes": self.stored_bytes,
            "stored_bytes_exact": self.exact,
            "disk_bytes_of_a_host": self.disk_bytes,
            "times": asdict(self.times),
            "tokens_per_second": {"slow": self.work.tokens / seconds[0], "fast": self.work.tokens / seconds[1]},
            "costs": asdict(self.costs),
            "measured": None if self.speed is None else asdict(self.speed),
            "assumptions": [assumption._asdict() for assumption in self.assumptions],
        }


def make_plan(config: PlanConfig, note: Callable[[str], None]) -> Plan:
    """Plan the run; `note` is told what takes time.

    Raises an InputError as the run would, UsageError for an unknown accelerator, DoesNotFitError where not even one row
    fits.
    """
    accelerator = parse_accelerator(config.accelerator)
    run = planned_run(config)
    mesh = mesh_shape(run, accelerator)
    fit = fit_on(run, accelerator, note)
    # On cpu the step is run, and must fit.
    rows = fit.rows if accelerator.platform == "cpu" else config.batch_size or fit.rows
    run = replace(run, config=replace(config, batch_size=rows))
    work = _workload(run, accelerator, note)
    stored, assumed = stored_bytes_of(run, work)
    speed = None
    if accelerator.platform == "cpu":
        note("measuring this machine")
        backend.compute_on_cpu()
        speed = measure_speed(run, work)
        times = measured_times(run, work, speed)
        stored = work.output.activations / speed.ratio if is_compressed(run) else stored
        assumed = [MEASURED_SPREAD]
    else:
        stages, assumed_of_stages = stages_on(run, accelerator, mesh, work, stored)
        times = pipelined(stages, config.workers)
        assumed = [*assumed, *assumed_of_stages]
    usual = [] if work.counted else [TYPICAL_MEDIAN, TYPICAL_MEAN, TYPICAL_TEXT_BYTES]
    return Plan(
        run=run,
        accelerator=accelerator,
        mesh=str(mesh),
        weight_bytes=run_weight_bytes(run),
        fit=fit,
        asked_rows=config.batch_size,
        work=work,
        stored_bytes=stored,
        exact=work.counted and not is_compressed(run) and config.workers == 1,
        times=times,
        costs=costs(run, times, stored),
        disk_bytes=_disk_bytes(run, accelerator),
        speed=speed,
        assumptions=tuple(dict.fromkeys([*usual, *assumed])),
    )


def _disk_bytes(run: PlannedRun, accelerator: Accelerator) -> float | None:
    if accelerator.platform != "cpu":
        return TPU_DISK_BYTES.value if accelerator.platform == "tpu" else None
    folder = run.config.output_folder.absolute()
    return shutil.disk_usage(next(parent for parent in (folder, *folder.parents) if parent.exists())).free


def _workload(run: PlannedRun, accelerator: Accelerator, note: Callable[[str], None]) -> Workload:
    devices = accelerator.chips // accelerator.hosts
    if run.config.tokens is not None:
        return usual_workload(run.config, run.form, devices=devices, hosts=accelerator.hosts)
    checkpoint = run.checkpoint()
    note(f"counting {run.config.dataset_path}")
    return count_dataset(run.config, checkpoint, run.form, devices=devices, hosts=accelerator.hosts)
