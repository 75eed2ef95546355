"""`layertap plan`: everything that can be known before a run, as JSON and in words.

Without an accelerator, the plan has only what no machine changes: samples, tokens, bytes, shards
and files, as one device writes them with any number of rows per step. The same holds for this
machine.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

from layertap.config.plan import PlanConfig
from layertap.core.amounts import amount
from layertap.core.selection import ALL
from layertap.core.taps import name_layers
from layertap.dataset import opening_lines
from layertap.errors import UsageError
from layertap.pipeline.output import IN_MEMORY
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
from layertap.plan.usual import UsualPrefix, usual_prefix, usual_workload
from layertap.plan.workload import Workload, count_dataset

_THIS_MACHINE = "cpu"


@dataclass(frozen=True)
class OnAccelerator:
    """What the accelerator decides about a run."""

    accelerator: Accelerator
    mesh: str
    fit: Fit
    times: Times
    disk_bytes: float | None
    """The size of one host's disk; None if unknown."""
    assumptions: tuple[Assumption, ...]


@dataclass(frozen=True)
class Plan:
    """The plan of a run."""

    run: PlannedRun
    placed: OnAccelerator | None
    """None without an accelerator, or with cpu."""
    weight_bytes: int
    asked_rows: int | None
    """`--batch_size`, if it was given."""
    work: Workload
    prefix: UsualPrefix
    """What is assumed of it where no dataset is counted."""
    stored_bytes: float
    """Bytes on disk at the end, without manifests."""
    exact: bool
    """Whether `stored_bytes` is exact."""
    costs: Costs
    assumptions: tuple[Assumption, ...]

    @property
    def kept_tokens(self) -> float:
        """How many of the computed tokens are stored."""
        return self.work.output.activations / self.run.form.bytes_per_token

    @property
    def memory_of_shards(self) -> int:
        """Bytes of a host's memory that shards take on their way to a URL; 0 where they go to a
        folder.
        """
        config = self.run.config
        return 0 if config.output_url is None else (config.upload.uploads_at_once + IN_MEMORY) * config.shard_bytes

    @property
    def share_of_a_host(self) -> float:
        """Bytes that a host stores."""
        hosts = 1 if self.placed is None else self.placed.accelerator.hosts
        return self.stored_bytes / (hosts * self.run.config.workers)

    @property
    def full_disk(self) -> float | None:
        """The bytes of a host's disk where they are too few for its share; else None."""
        if self.placed is None or self.placed.disk_bytes is None or self.run.config.upload.delete_local_after_upload:
            return None
        return self.placed.disk_bytes if self.share_of_a_host > self.placed.disk_bytes else None

    def to_json(self) -> dict[str, Any]:
        """Return everything as plain values; None for what only an accelerator decides."""
        run, form, counted, placed = self.run, self.run.form, self.work, self.placed
        work = asdict(replace(counted, steps={}))
        steps = [{"rows": rows, "length": length, "count": n} for (rows, length), n in counted.steps.items()]
        work |= {"steps": placed and steps, "computed_tokens": placed and counted.computed_tokens}
        work["uncompressed_bytes"] = counted.output.uncompressed
        ends = placed and {"slow": placed.times.slow, "fast": placed.times.fast}
        return {
            "model": run.config.model_path,
            "layers": list(form.layers),
            "sites": list(form.sites),
            "format": form.name,
            "storage_dtype": form.stored_as,
            "accelerator": placed and asdict(placed.accelerator),
            "workers": run.config.workers,
            "mesh": placed and placed.mesh,
            "weight_bytes": self.weight_bytes,
            "batch_size": run.config.batch_size if placed else self.asked_rows,
            "fits": placed and self.asked_rows in (None, placed.fit.rows),
            "fit": placed and asdict(placed.fit),
            "work": work,
            "bytes_per_token": form.bytes_per_token,
            "kept_tokens": self.kept_tokens,
            "stored_bytes": self.stored_bytes,
            "stored_bytes_exact": self.exact,
            "disk_bytes_of_a_host": placed and placed.disk_bytes,
            "memory_of_shards": self.memory_of_shards,
            "times": placed and asdict(placed.times),
            "tokens_per_second": ends and {end: counted.tokens / max(time, 1e-9) for end, time in ends.items()},
            "costs": asdict(self.costs),
            "assumptions": [assumption._asdict() for assumption in self.assumptions],
        }

    def describe(self) -> str:
        """Return lines for the user; `to_json` has every figure."""
        placed = self.placed
        sections = {
            "run": _run(self),
            "output": _output(self),
            "memory": [] if placed is None else _memory(self, placed),
            "time": [] if placed is None else _time(placed.times, self.work.tokens),
            "cost": _cost(self),
            "assumed": map(str, self.assumptions),
            "more": [] if placed is not None else _more(self.run.config.accelerator),
        }
        width = max(map(len, sections)) + 2
        numbered = [(name, number, line) for name, said in sections.items() for number, line in enumerate(said)]
        return "\n".join(f"{'' if number else name:<{width}}{line}" for name, number, line in numbered)


def make_plan(config: PlanConfig, note: Callable[[str], None]) -> Plan:
    """Plan the run; calls `note` before slow work.

    Raises an InputError as the run would, UsageError for an unknown accelerator, DoesNotFitError if
    not even one row fits.
    """
    name = config.accelerator
    accelerator = None if name is None or name == _THIS_MACHINE else parse_accelerator(name)
    run = planned_run(config)
    fit = None if accelerator is None else fit_on(run, accelerator)
    run = replace(run, config=replace(config, batch_size=config.batch_size or (1 if fit is None else fit.rows)))
    prefix = UsualPrefix() if config.tokens is None else usual_prefix(run)
    work = _workload(run, accelerator, prefix.tokens, note)
    stored, assumed = stored_bytes_of(run, work)
    placed = None if accelerator is None or fit is None else _placed(run, accelerator, fit, work, stored)
    usual = [] if work.counted else [TYPICAL_MEDIAN, TYPICAL_MEAN, TYPICAL_TEXT_BYTES]
    usual += [] if prefix.assumption is None else [prefix.assumption]
    return Plan(
        run=run,
        placed=placed,
        weight_bytes=run_weight_bytes(run),
        asked_rows=config.batch_size,
        work=work,
        prefix=prefix,
        stored_bytes=stored,
        exact=work.counted and not run.is_compressed and config.workers == 1,
        costs=costs(run, placed.times if placed else None, stored),
        assumptions=tuple(dict.fromkeys([*usual, *assumed, *(placed.assumptions if placed else ())])),
    )


def _placed(run: PlannedRun, accelerator: Accelerator, fit: Fit, work: Workload, stored: float) -> OnAccelerator:
    mesh = mesh_shape(run, accelerator)
    stages, assumed = stages_on(run, accelerator, mesh, work, stored)
    disk_bytes = TPU_DISK_BYTES.value if accelerator.platform == "tpu" else None
    times = pipelined(stages, run.config.workers)
    return OnAccelerator(accelerator, str(mesh), fit, times, disk_bytes, tuple(assumed))


def _workload(run: PlannedRun, accelerator: Accelerator | None, prefix: int, note: Callable[[str], None]) -> Workload:
    hosts, chips = (1, 1) if accelerator is None else (accelerator.hosts, accelerator.chips)
    if run.config.max_tokens_total is not None and accelerator is not None and hosts > 1:
        raise UsageError(
            f"--max_tokens_total does not work with the {hosts} hosts of {accelerator.name}; use --max_tasks instead"
        )
    if run.config.tokens is not None:
        return usual_workload(
            run.config,
            run.form,
            devices=chips // hosts,
            hosts=hosts,
            context=run.model.context,
            prefix=prefix,
        )
    checkpoint = run.checkpoint()
    for line in (*opening_lines(run.config), f"counting {run.config.dataset}"):
        note(line)
    return count_dataset(run.config, checkpoint, run.form, devices=chips // hosts, hosts=hosts)


def _run(plan: Plan) -> list[str]:
    run, work = plan.run, plan.work
    layers, sites = name_layers(run.form.layers), ", ".join(run.form.sites)
    counted = "counted" if work.counted else "ARC prompts of the usual lengths"
    lines = [
        f"{run.config.model_path}, {sites} of {layers} (runs {run.num_layers} of {run.model.num_hidden_layers} layers),"
        f" {run.config.compute_dtype}",
        f"{work.samples:,.0f} samples, {work.tokens:,.0f} tokens ({counted}); the longest sample has {work.longest:,}",
    ]
    if plan.placed is not None:
        on, many = plan.placed.accelerator, f"{run.config.workers} times " if run.config.workers > 1 else ""
        lines.insert(1, f"on {many}{on.name}: {amount(on.chips, 'chip', ',')}, {amount(on.hosts, 'host', ',')}")
        lines.append(f"{work.real_share:.1%} of computed tokens are real")
    if work.shared_tokens:
        assumed = "" if plan.prefix.assumption is None else " (assumed)"
        lines.append(
            f"{work.shared_tokens / work.tokens:.1%} of all tokens are a prefix that is computed once{assumed}"
        )
    return lines


def _output(plan: Plan) -> list[str]:
    run, output = plan.run, plan.work.output
    # Each of several workers closes its own last shard, with its own headers.
    exact = plan.work.counted and run.config.workers == 1
    whole = f"{output.uncompressed:,} bytes" if exact else f"about {_size(output.uncompressed)}"
    kept = ""
    if ALL not in run.config.keep_tokens:
        kept = f", of {plan.kept_tokens:,.0f} tokens ({', '.join(run.config.keep_tokens)})"
    lines = [
        f"{run.form.bytes_per_token:,} bytes of activations per token, {run.form.stored_as},"
        f" {_size(output.activations)} in all" + kept,
        f"{run.form.name}: {whole} in {amount(output.shards, 'shard', ',')}, {amount(output.files, 'file', ',')}"
        + (", before compression" if run.is_compressed else "")
        + (" (exact)" if exact else ""),
    ]
    if run.is_compressed:
        lines.append(f"gzip makes about {_size(plan.stored_bytes)} of it (an estimate)")
    if plan.memory_of_shards:
        lines.append(
            f"from memory to {run.config.output_url}: shards take about {_size(plan.memory_of_shards)} of each host's"
            " memory, and no disk"
        )
    elif (disk := plan.full_disk) is not None:
        lines.append(
            f"a host's share, {_size(plan.share_of_a_host)}, does not fit onto its disk ({_size(disk)}): write to a"
            " bucket, by --output_dir gs://..., or take fewer layers"
        )
    return lines


def _memory(plan: Plan, placed: OnAccelerator) -> list[str]:
    fit, capacity, asked = placed.fit, placed.accelerator.memory_bytes, plan.asked_rows
    refused = f"--batch_size {asked} does not fit; " if asked not in (None, fit.rows) else ""
    rows = f"{refused}{'' if asked == fit.rows else 'recommended '}--batch_size {fit.rows}"
    lines = [
        f"{rows}, rows of {plan.run.config.row_length:,} tokens per chip: {_of(fit.memory, capacity)}",
        f"the longest row, {fit.longest_row:,} tokens: {_of(fit.longest_memory, capacity)}",
        f"--mesh {placed.mesh}, weights {_size(plan.weight_bytes)}",
    ]
    if plan.work.longest > fit.longest_row:
        lines.append(f"some samples are longer than {fit.longest_row:,} tokens and would not fit")
    return lines


def _of(memory: int, capacity: int) -> str:
    return f"{memory / 1e9:.1f} of {capacity / 1e9:.0f} GB (estimated)"


def _time(times: Times, tokens: float) -> list[str]:
    rates = (f"{tokens / max(seconds, 1e-9):,.0f}" for seconds in (times.slow, times.fast))
    lines = [f"{_span(*rates)} tokens/s: {_span(_duration(times.fast), _duration(times.slow))}"]
    lines.append("plus a few minutes to load weights and compile")
    for stage in times.stages:
        if stage.slow > 0:
            lines.append(f"  {stage.name}: {_span(_duration(stage.fast), _duration(stage.slow))}")
    either = "" if times.bottleneck == times.fast_bottleneck else f" ({times.fast_bottleneck} at the fast end)"
    lines.append(f"bottleneck: {times.bottleneck}{either}")
    return lines


def _cost(plan: Plan) -> list[str]:
    lines, costs = [], plan.costs
    if costs.compute_slow is not None and costs.compute_fast is not None:
        lines.append(f"{costs.compute_fast:,.2f} to {costs.compute_slow:,.2f} for computing")
    if costs.storage_per_month is not None:
        lines.append(f"{costs.storage_per_month:,.2f} per month for storage")
    if not lines and plan.placed is not None:
        lines.append("give --price_per_hour and --price_per_gb_month")
    return lines


def _more(accelerator: str | None) -> list[str]:
    lines = ["--accelerator NAME, such as v5litepod-8 or h100x1, adds memory, time and cost"]
    if accelerator == _THIS_MACHINE:
        lines.append("to measure the speed of this machine, run with --max_tasks 10")
    return lines


def _span(first: str, last: str) -> str:
    return first if first == last else f"{first} to {last}"


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
