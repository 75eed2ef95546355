"""The arithmetic of a plan."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from layertap.config.plan import PlanConfig
from layertap.plan.accelerators import parse_accelerator
from layertap.plan.estimate import Stage, costs, pipelined, stages_on
from layertap.plan.planned import PlannedRun, causal_pairs, forward_flops, mesh_shape, planned_run
from layertap.plan.usual import usual_workload
from layertap.plan.workload import Workload

SEVEN = {"model_path": "7b", "tokens": 10**8, "row_length": 4096, "layers_to_extract": ()}


def on(config: PlanConfig, name: str) -> tuple[PlannedRun, Workload, dict[str, Stage]]:
    run, accelerator = planned_run(config), parse_accelerator(name)
    work = usual_workload(config, run.form, devices=accelerator.chips // accelerator.hosts, hosts=accelerator.hosts)
    stages, assumed = stages_on(run, accelerator, mesh_shape(run, accelerator), work, work.output.uncompressed)
    assert assumed
    return run, work, {stage.name: stage for stage in stages}


def test_flops_of_the_published_shapes() -> None:
    from layertap.model.config import published_config

    for size, gigaflops in (("0.5b", 0.80), ("7b", 13.46), ("72b", 143)):
        config = published_config(size)
        flops = forward_flops(config, config.num_hidden_layers, 2048, causal_pairs(2048))
        assert flops / 2048 / 1e9 == pytest.approx(gigaflops, rel=0.01)


def test_what_is_stored_decides_the_bottleneck(planned: Callable[..., PlanConfig]) -> None:
    everything = pipelined(tuple(on(planned(**SEVEN), "v5litepod-64")[2].values()), 1)
    one_layer = planned(**(SEVEN | {"layers_to_extract": (27,), "format": "safetensors"}))
    little = pipelined(tuple(on(one_layer, "v5litepod-64")[2].values()), 1)
    assert everything.bottleneck == "disk"
    assert little.bottleneck == "compute"
    assert little.fast < little.slow < everything.fast


def test_cores_of_a_host_share_the_encoding_and_one_thread_writes(planned: Callable[..., PlanConfig]) -> None:
    tensors = planned(**SEVEN, format="safetensors", disk_gb_per_second=1000.0)
    (_, work, one), (*_, eight) = (on(tensors, name) for name in ("h100x1", "h100x8"))
    assert one["encoding"].slow / eight["encoding"].slow == pytest.approx(32 / 13)  # 104 cores, of which 32 are used
    assert one["disk"].slow == eight["disk"].slow > work.output.uncompressed / 1000e9
    pickles = on(planned(**SEVEN), "h100x1")[2]
    assert pickles["encoding"].slow > 3 * one["encoding"].slow


def test_uploads_are_a_stage_where_there_are_some(planned: Callable[..., PlanConfig]) -> None:
    from layertap.config.upload import UploadConfig

    assert "network" not in on(planned(**SEVEN), "h200x1")[2]
    uploading = planned(**SEVEN, upload=UploadConfig(gcs_bucket="b"), network_gb_per_second=2.0)
    _, work, stages = on(uploading, "h200x1")
    assert stages["network"].slow == pytest.approx(work.output.uncompressed / 2e9)


def test_workers_share_time_and_add_up_in_money(planned: Callable[..., PlanConfig]) -> None:
    config = planned(**SEVEN, workers=4, price_per_hour=2.0, price_per_gb_month=0.02)
    run = planned_run(config)
    times = pipelined([Stage("compute", 7200.0, 3600.0), Stage("disk", 5400.0, 5400.0)], 4)
    assert (times.slow, times.fast) == (1800.0, 1350.0)
    assert (times.bottleneck, times.fast_bottleneck) == ("compute", "disk")
    paid = costs(run, times, stored_bytes=500e9)
    assert (paid.compute_slow, paid.compute_fast, paid.storage_per_month) == (4.0, 3.0, 10.0)
    free = costs(replace(run, config=replace(config, price_per_hour=None, price_per_gb_month=None)), times, 1.0)
    assert (free.compute_slow, free.storage_per_month) == (None, None)
