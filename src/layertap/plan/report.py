"""A plan in words."""

from layertap.plan.command import Plan
from layertap.plan.estimate import is_compressed
from layertap.plan.memory import ChipMemory


def describe(plan: Plan) -> str:
    """Lines for a person; `Plan.to_json` has every figure."""
    sections = {
        "run": _run(plan),
        "output": _output(plan),
        "memory": _memory(plan),
        "time": _time(plan),
        "cost": _cost(plan),
        "assumed": [str(assumption) for assumption in plan.assumptions],
    }
    width = max(map(len, sections)) + 2
    lines = []
    for name, said in sections.items():
        lines += [f"{name if number == 0 else '':<{width}}{line}" for number, line in enumerate(said)]
    return "\n".join(lines)


def _run(plan: Plan) -> list[str]:
    run, work = plan.run, plan.work
    layers, sites = len(run.form.layers), " ".join(run.form.sites)
    accelerator = plan.accelerator
    many = f"{plan.run.config.workers} times " if plan.run.config.workers > 1 else ""
    counted = "counted" if work.counted else "ARC prompts of the usual lengths"
    return [
        f"{run.config.model_path}, {sites} of {layers} layers ({run.num_layers} run), {run.config.compute_dtype}",
        f"on {many}{accelerator.name}: {_number(accelerator.chips, 'chip')}, {_number(accelerator.hosts, 'host')}",
        f"{work.samples:,.0f} samples, {work.tokens:,.0f} tokens ({counted}); the longest sample has {work.longest:,}",
        f"{work.tokens / max(work.computed_tokens, 1):.1%} of computed tokens are real",
    ]


def _output(plan: Plan) -> list[str]:
    run, work = plan.run, plan.work
    # Each of several workers closes a last shard of its own, with headers of its own.
    exact = work.counted and run.config.workers == 1
    whole = f"{work.output.uncompressed:,} bytes" if exact else f"about {_size(work.output.uncompressed)}"
    lines = [
        f"{run.form.bytes_per_token:,} bytes of activations a token, {run.form.dtype.name},"
        f" {_size(work.output.activations)} in all",
        f"{run.form.name}: {whole} in {work.output.shards:,} shards, {work.output.files:,} files"
        + (", before compression" if is_compressed(run) else "")
        + (" (exact)" if exact else ""),
    ]
    if is_compressed(run):
        source = "as measured on random weights" if plan.speed is not None else "an estimate"
        lines.append(f"gzip makes about {_size(plan.stored_bytes)} of it ({source})")
    return [*lines, *_room(plan)]


def _room(plan: Plan) -> list[str]:
    """Whether it fits onto the disks, where it has to."""
    hosts, config = plan.accelerator.hosts * plan.run.config.workers, plan.run.config
    if (
        plan.disk_bytes is None
        or config.upload.delete_local_after_upload
        or plan.stored_bytes / hosts <= plan.disk_bytes
    ):
        return []
    return [
        f"a host's share, {_size(plan.stored_bytes / hosts)}, does not fit onto its disk ({_size(plan.disk_bytes)}):"
        " upload, with --delete_local_after_upload, or take fewer layers"
    ]


def _memory(plan: Plan) -> list[str]:
    fit, capacity = plan.fit, plan.accelerator.memory_bytes
    asked = plan.run.config
    lines = [
        f"{_batch(plan)}, rows of {asked.row_length:,} tokens a chip: {_of(fit.memory, capacity)}",
        f"the longest row, {fit.longest_row:,} tokens: {_of(fit.longest_memory, capacity)}",
        f"--mesh {plan.mesh}, weights {_size(plan.weight_bytes)}",
    ]
    if plan.work.longest > fit.longest_row:
        lines.append(f"some samples are longer than {fit.longest_row:,} tokens, and would not fit")
    return lines


def _batch(plan: Plan) -> str:
    """What was asked for where it fits, else what is recommended."""
    if plan.asked_rows == plan.fit.rows:
        return f"--batch_size {plan.fit.rows}"
    refused = f"--batch_size {plan.asked_rows} does not fit; " if plan.asked_rows else ""
    return f"{refused}recommended --batch_size {plan.fit.rows}"


def _of(memory: ChipMemory, capacity: int) -> str:
    source = "TPU compiler" if memory.compiled else "estimated"
    return f"{memory.peak / 1e9:.1f} of {capacity / 1e9:.0f} GB ({source})"


def _time(plan: Plan) -> list[str]:
    times, tokens = plan.times, plan.work.tokens
    rates = (f"{tokens / max(seconds, 1e-9):,.0f}" for seconds in (times.slow, times.fast))
    lines = [f"{_span(*rates)} tokens/s: {_span(_duration(times.fast), _duration(times.slow))}"]
    if times.expected is not None and times.start_up is not None:
        lines.append(
            f"expected {_duration(times.expected)}, and up to {_duration(times.start_up)} of compiling the first time"
        )
    else:
        lines.append("loading weights and compiling come on top: some minutes")
    for stage in times.stages:
        if stage.slow > 0:
            lines.append(f"  {stage.name}: {_span(_duration(stage.fast), _duration(stage.slow))}")
    either = "" if times.bottleneck == times.fast_bottleneck else f" ({times.fast_bottleneck} at the fast end)"
    lines.append(f"bottleneck: {times.bottleneck}{either}")
    return lines


def _cost(plan: Plan) -> list[str]:
    costs = plan.costs
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
