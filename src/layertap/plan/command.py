"""`layertap plan`: everything that is known before a run, in one piece, as JSON and in words."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

from layertap.config.plan import PlanConfig
from layertap.core.selection import ALL
from layertap.dataset import opening_lines
from layertap.errors import UsageError
from layertap.plan.accelerators import (
    TPU_DISK_BYTES,
    TYPICAL_MEAN,
    TYPICAL_MEDIAN,
    TYPICAL_TEXT_BYTES,
    Accelerator,
    Assumption,
    parse_accelerator,
)
from layertap.plan.estimate import Costs, Times, costs, pipelined, stages_on, stored_bytes_of
from layertap.plan.planned import Fit, PlannedRun, fit_on, mesh_shape, planned_run, run_weight_bytes
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
    assumptions: tuple[Assumption, ...]

    @property
    def kept_tokens(self) -> float:
        """How many tokens are stored, of those that are computed."""
        return self.work.output.activations / self.run.form.bytes_per_token

    def to_json(self) -> dict[str, Any]:
        """All of it as plain values."""
        run, form, counted = self.run, self.run.form, self.work
        work = asdict(replace(counted, steps={}))
        work["steps"] = [{"rows": rows, "length": length, "count": n} for (rows, length), n in counted.steps.items()]
        work |= {"computed_tokens": counted.computed_tokens, "uncompressed_bytes": counted.output.uncompressed}
        ends = {"slow": self.times.slow, "fast": self.times.fast}
        return {
            "model": run.config.model_path,
            "layers": list(form.layers),
            "sites": list(form.sites),
            "format": form.name,
            "storage_dtype": form.dtype.name,
            "accelerator": asdict(self.accelerator),
            "workers": run.config.workers,
            "mesh": self.mesh,
            "weight_bytes": self.weight_bytes,
            "batch_size": run.config.batch_size,
            "fits": self.asked_rows in (None, self.fit.rows),
            "fit": asdict(self.fit),
            "work": work,
            "bytes_per_token": form.bytes_per_token,
            "kept_tokens": self.kept_tokens,
            "stored_bytes": self.stored_bytes,
            "stored_bytes_exact": self.exact,
            "disk_bytes_of_a_host": self.disk_bytes,
            "times": asdict(self.times),
            "tokens_per_second": {end: counted.tokens / max(seconds, 1e-9) for end, seconds in ends.items()},
            "costs": asdict(self.costs),
            "assumptions": [assumption._asdict() for assumption in self.assumptions],
        }

    def describe(self) -> str:
        """Lines for a person; `to_json` has every figure."""
        sections = {
            "run": _run(self),
            "output": _output(self),
            "memory": _memory(self),
            "time": _time(self),
            "cost": _cost(self.costs),
            "assumed": map(str, self.assumptions),
        }
        width = max(map(len, sections)) + 2
        numbered = [(name, number, line) for name, said in sections.items() for number, line in enumerate(said)]
        return "\n".join(f"{'' if number else name:<{width}}{line}" for name, number, line in numbered)


def make_plan(config: PlanConfig, note: Callable[[str], None]) -> Plan:
    """Plan the run; `note` is called with what takes time.

    Raises an InputError as the run would, UsageError for an unknown accelerator, DoesNotFitError
    where not even one row fits.
    """
    accelerator = parse_accelerator(config.accelerator)
    run = planned_run(config)
    fit = fit_on(run, accelerator)
    run = replace(run, config=replace(config, batch_size=config.batch_size or fit.rows))
    mesh = mesh_shape(run, accelerator)
    work = _workload(run, accelerator, note)
    stored, assumed = stored_bytes_of(run, work)
    stages, assumed_of_stages = stages_on(run, accelerator, mesh, work, stored)
    times = pipelined(stages, config.workers)
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
        exact=work.counted and not run.is_compressed and config.workers == 1,
        times=times,
        costs=costs(run, times, stored),
        disk_bytes=TPU_DISK_BYTES.value if accelerator.platform == "tpu" else None,
        assumptions=tuple(dict.fromkeys([*usual, *assumed, *assumed_of_stages])),
    )


def _workload(run: PlannedRun, accelerator: Accelerator, note: Callable[[str], None]) -> Workload:
    devices = accelerator.chips // accelerator.hosts
    if run.config.max_tokens_total is not None and accelerator.hosts > 1:
        raise UsageError(f"--max_tokens_total does not go with the {accelerator.hosts} hosts of {accelerator.name}")
    if run.config.tokens is not None:
        return usual_workload(run.config, run.form, devices=devices, hosts=accelerator.hosts)
    checkpoint = run.checkpoint()
    for line in (*opening_lines(run.config), f"counting {run.config.dataset}"):
        note(line)
    return count_dataset(run.config, checkpoint, run.form, devices=devices, hosts=accelerator.hosts)


def _run(plan: Plan) -> list[str]:
    run, work, accelerator = plan.run, plan.work, plan.accelerator
    layers, sites = len(run.form.layers), " ".join(run.form.sites)
    many = f"{run.config.workers} times " if run.config.workers > 1 else ""
    counted = "counted" if work.counted else "ARC prompts of the usual lengths"
    return [
        f"{run.config.model_path}, {sites} of {layers} layers ({run.num_layers} run), {run.config.compute_dtype}",
        f"on {many}{accelerator.name}: {_number(accelerator.chips, 'chip')}, {_number(accelerator.hosts, 'host')}",
        f"{work.samples:,.0f} samples, {work.tokens:,.0f} tokens ({counted}); the longest sample has {work.longest:,}",
        f"{work.tokens / max(work.computed_tokens, 1):.1%} of computed tokens are real",
    ]


def _output(plan: Plan) -> list[str]:
    run, output = plan.run, plan.work.output
    # Each of several workers closes a last shard of its own, with headers of its own.
    exact = plan.work.counted and run.config.workers == 1
    whole = f"{output.uncompressed:,} bytes" if exact else f"about {_size(output.uncompressed)}"
    kept = ""
    if ALL not in run.config.keep_tokens:
        kept = f", of {plan.kept_tokens:,.0f} tokens ({', '.join(run.config.keep_tokens)})"
    lines = [
        f"{run.form.bytes_per_token:,} bytes of activations a token, {run.form.dtype.name},"
        f" {_size(output.activations)} in all" + kept,
        f"{run.form.name}: {whole} in {output.shards:,} shards, {output.files:,} files"
        + (", before compression" if run.is_compressed else "")
        + (" (exact)" if exact else ""),
    ]
    if run.is_compressed:
        lines.append(f"gzip makes about {_size(plan.stored_bytes)} of it (an estimate)")
    share = plan.stored_bytes / (plan.accelerator.hosts * run.config.workers)
    if plan.disk_bytes is not None and share > plan.disk_bytes and not run.config.upload.delete_local_after_upload:
        lines.append(
            f"a host's share, {_size(share)}, does not fit onto its disk ({_size(plan.disk_bytes)}):"
            " upload, with --delete_local_after_upload, or take fewer layers"
        )
    return lines


def _memory(plan: Plan) -> list[str]:
    fit, capacity, asked = plan.fit, plan.accelerator.memory_bytes, plan.asked_rows
    refused = f"--batch_size {asked} does not fit; " if asked not in (None, fit.rows) else ""
    rows = f"{refused}{'' if asked == fit.rows else 'recommended '}--batch_size {fit.rows}"
    lines = [
        f"{rows}, rows of {plan.run.config.row_length:,} tokens a chip: {_of(fit.memory, capacity)}",
        f"the longest row, {fit.longest_row:,} tokens: {_of(fit.longest_memory, capacity)}",
        f"--mesh {plan.mesh}, weights {_size(plan.weight_bytes)}",
    ]
    if plan.work.longest > fit.longest_row:
        lines.append(f"some samples are longer than {fit.longest_row:,} tokens, and would not fit")
    return lines


def _of(memory: int, capacity: int) -> str:
    return f"{memory / 1e9:.1f} of {capacity / 1e9:.0f} GB (estimated)"


def _time(plan: Plan) -> list[str]:
    times, tokens = plan.times, plan.work.tokens
    rates = (f"{tokens / max(seconds, 1e-9):,.0f}" for seconds in (times.slow, times.fast))
    lines = [f"{_span(*rates)} tokens/s: {_span(_duration(times.fast), _duration(times.slow))}"]
    lines.append("loading weights and compiling come on top: some minutes")
    for stage in times.stages:
        if stage.slow > 0:
            lines.append(f"  {stage.name}: {_span(_duration(stage.fast), _duration(stage.slow))}")
    either = "" if times.bottleneck == times.fast_bottleneck else f" ({times.fast_bottleneck} at the fast end)"
    lines.append(f"bottleneck: {times.bottleneck}{either}")
    return lines


def _cost(costs: Costs) -> list[str]:
    lines = []
    if costs.compute_slow is not None and costs.compute_fast is not None:
        lines.append(f"{costs.compute_fast:,.2f} to {costs.compute_slow:,.2f} for computing")
    if costs.storage_per_month is not None:
        lines.append(f"{costs.storage_per_month:,.2f} a month for storage")
    return lines or ["give --price_per_hour and --price_per_gb_month"]


def _span(first: str, last: str) -> str:
    return first if first == last else f"{first} to {last}"


def _number(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _size(count: float) -> str:
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if count >= scale:
            return f"{count / scale:.1f} {unit}"
    return f"{count / 1e3:.1f} kB"


def _duration(seconds: float) -> str:
    for unit, scale in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * scale:
            return f"{seconds / scale:.1f} {unit}"
    return f"{seconds:.1f} s"
