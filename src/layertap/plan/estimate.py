"""Turn work and rates into hours and money: pure arithmetic.

A run is a pipeline: while the device computes a step, the activations of the step before go to the
host, one shard is encoded and another is uploaded. So it takes as long as its slowest stage, the
bottleneck. Each stage has a slow and a fast estimate; they differ if we do not know how well the
device will be used.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from layertap.model.mesh import MeshShape
from layertap.pipeline.step import transfer_dtype
from layertap.plan.accelerators import (
    FAST_SHARE_OF_PEAK,
    GZIP_BYTES_A_SECOND,
    GZIP_RATIO,
    MEASURING_SECONDS_A_VALUE,
    NETWORK,
    PUTTING_BYTES_A_SECOND,
    SLOW_SHARE_OF_PEAK,
    Accelerator,
    Assumption,
)
from layertap.plan.planned import PlannedRun, forward_flops, layer_products
from layertap.plan.workload import Workload
from layertap.shards.threads import MOST_THREADS

StageName = Literal["compute", "interconnect", "device to host", "input", "encoding", "disk", "network"]


@dataclass(frozen=True)
class Stage:
    """One stage of the pipeline, with its seconds if one accelerator does all the work."""

    name: StageName
    slow: float
    fast: float


@dataclass(frozen=True)
class Times:
    """How long a run takes on all its accelerators, in seconds, and its bottleneck."""

    stages: tuple[Stage, ...]
    slow: float
    fast: float
    bottleneck: StageName
    """At the slow end."""
    fast_bottleneck: StageName


@dataclass(frozen=True)
class Costs:
    """Money, in the currency of the prices; None without a price or an accelerator."""

    compute_slow: float | None
    compute_fast: float | None
    storage_per_month: float | None


def stages_on(
    run: PlannedRun, accelerator: Accelerator, mesh: MeshShape, work: Workload, stored_bytes: float
) -> tuple[list[Stage], list[Assumption]]:
    """Estimate the stages on an accelerator; return them with their assumptions."""
    transfer = transfer_dtype(run.compute_dtype, run.form.dtype).itemsize
    moved = work.computed_tokens * run.values_per_token * transfer
    # At every step each chip reads all kernels, and receives all but its own part of them.
    kernels = sum(work.steps.values()) * run.num_layers * layer_products(run.model) * run.compute_dtype.itemsize
    gathered = kernels * (mesh.fsdp - 1) / mesh.fsdp
    slow, fast = (_computing(run, accelerator, work, share) for share in (SLOW_SHARE_OF_PEAK, FAST_SHARE_OF_PEAK))
    reading = kernels / accelerator.memory_bandwidth
    stages = [
        Stage("compute", max(slow, reading), max(fast, reading)),
        _even("interconnect", gathered / accelerator.link_bandwidth),
        _even("device to host", moved / (accelerator.chips * accelerator.host_bandwidth)),
        _even("input", work.seconds),
    ]
    host_stages, assumed = _on_hosts(run, accelerator, work, stored_bytes)
    return [*stages, *host_stages], [SLOW_SHARE_OF_PEAK, FAST_SHARE_OF_PEAK, *assumed]


def _computing(run: PlannedRun, accelerator: Accelerator, work: Workload, share: Assumption) -> float:
    """Return the seconds at this share of the peak."""
    # The TPU kernel computes whole rows; the GPU kernel skips blocks of other samples.
    pairs = work.row_pairs if accelerator.platform == "tpu" else work.sample_pairs
    bf16 = run.config.compute_dtype == "bfloat16"
    peak = accelerator.chips * (accelerator.bf16_flops if bf16 else accelerator.float32_flops)
    return forward_flops(run.model, run.num_layers, work.computed_tokens, pairs) / (share.value * peak)


def _on_hosts(
    run: PlannedRun, accelerator: Accelerator, work: Workload, stored_bytes: float
) -> tuple[list[Stage], list[Assumption]]:
    """Each host writes what its chips computed."""
    encoding, assumed = _encoding(run, accelerator, work, stored_bytes)
    stages = [_even("encoding", encoding)]
    config = run.config
    rates: list[tuple[StageName, float | None, Assumption]] = []
    if config.output_url is None:  # else there is no disk on the way
        rates.append(("disk", config.disk_gb_per_second, accelerator.disk))
    if config.output_url is not None or config.upload.url(config.worker) is not None:
        rates.append(("network", config.network_gb_per_second, NETWORK))
    for name, given, usual in rates:
        if given is not None:
            rate = given * 1e9
        else:
            assumed.append(usual)
            rate = usual.value
        if name == "disk":
            assumed.append(PUTTING_BYTES_A_SECOND)
            rate = min(rate, PUTTING_BYTES_A_SECOND.value)
        stages.append(_even(name, stored_bytes / (accelerator.hosts * rate)))
    return stages, assumed


def _encoding(
    run: PlannedRun, accelerator: Accelerator, work: Workload, stored_bytes: float
) -> tuple[float, list[Assumption]]:
    """Seconds in which the cores of all hosts convert, measure, compress and write."""
    host_chips = accelerator.chips // accelerator.hosts
    cores = Assumption(
        "cores that encode",
        min(MOST_THREADS, accelerator.cores_per_chip * host_chips),
        "a host",
        f"Google's machine types; at most {MOST_THREADS} are used",
    )
    assumed = [MEASURING_SECONDS_A_VALUE, cores]
    on_cores = work.tokens * run.values_per_token * MEASURING_SECONDS_A_VALUE.value
    if run.is_compressed:
        gzip = GZIP_BYTES_A_SECOND[_compressible_as(run)]
        assumed.insert(0, gzip)
        on_cores += work.output.uncompressed / gzip.value
    on_cores += stored_bytes / PUTTING_BYTES_A_SECOND.value
    return on_cores / (cores.value * accelerator.hosts), assumed


def _even(name: StageName, seconds: float) -> Stage:
    return Stage(name, seconds, seconds)


def _compressible_as(run: PlannedRun) -> str:
    """Return what decides compression: the storage dtype, or "exact" for float32 from float32."""
    dtype = run.form.dtype.name
    return "exact" if (dtype, run.config.compute_dtype) == ("float32", "float32") else dtype


def stored_bytes_of(run: PlannedRun, work: Workload) -> tuple[float, list[Assumption]]:
    """Estimate the bytes on disk at the end; return them with the assumption about compression."""
    if not run.is_compressed:
        return work.output.uncompressed, []
    ratio = GZIP_RATIO[_compressible_as(run)]
    return work.output.shard_files / ratio.value + work.output.statistics_files, [ratio]


def pipelined(stages: Sequence[Stage], accelerators: int) -> Times:
    """Return the time of stages that overlap, split over this many accelerators."""
    shared = tuple(Stage(stage.name, stage.slow / accelerators, stage.fast / accelerators) for stage in stages)
    slowest = max(shared, key=lambda stage: stage.slow)
    fastest = max(shared, key=lambda stage: stage.fast)
    return Times(shared, slowest.slow, fastest.fast, slowest.name, fastest.name)


def costs(run: PlannedRun, times: Times | None, stored_bytes: float) -> Costs:
    """Estimate the costs from the given prices, for the known times."""
    hourly, monthly = run.config.price_per_hour, run.config.price_per_gb_month
    rate = None if hourly is None else hourly * run.config.workers / 3600
    return Costs(
        compute_slow=None if rate is None or times is None else rate * times.slow,
        compute_fast=None if rate is None or times is None else rate * times.fast,
        storage_per_month=None if monthly is None else monthly * stored_bytes / 1e9,
    )
