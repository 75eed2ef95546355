"""Pools on the device hold the same values as pools on the host.

The device here is the CPU. It has to be told to keep activations; accelerators keep them by
default.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import layertap
from layertap.api import device
from layertap.api import stream as streams
from layertap.api.device import stays_on_device
from layertap.api.stream import StreamBatches
from layertap.core.taps import Tap
from layertap.errors import DeviceError, StorageError
from layertap.pipeline import staying
from layertap.pipeline.staying import DeviceStep
from layertap.reader.handover import Batch

Make = Callable[..., StreamBatches]
SETTINGS: dict[str, Any] = {
    "predictions_per_task": 2,
    "prompt_version": "output-from-examples-v1",
    "row_length": 1024,
    "batch_size": 2,
    "window_samples": 10,
    "layers_to_extract": [1, 3],
    "activation_type": ["residual", "neurons"],
}


@pytest.fixture
def stream(few_tasks: Path, tiny_model: Path) -> Iterator[layertap.ActivationStream]:
    stream = layertap.ActivationStream(dataset_path=few_tasks, model_path=tiny_model, **SETTINGS)
    yield stream
    stream.close()


@pytest.fixture
def make(stream: layertap.ActivationStream, monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    """Make batches on the device, or on the host."""
    made: list[StreamBatches] = []

    def make(*asked: Any, on_device: bool, **more: Any) -> StreamBatches:
        monkeypatch.setattr(streams, "stays_on_device", lambda *_: on_device)
        made.append(stream.batches(*asked, **more))
        return made[-1]

    yield make
    for batches in made:
        batches.close()


def arrays(batch: Batch) -> list[np.ndarray]:
    """Return everything in a batch, on the host."""
    given = batch.all_taps if batch.inputs is None else {"in": batch.inputs, "out": batch.targets}
    held = [given] if not isinstance(given, dict) else list(given.values())
    return [np.asarray(it.float() if hasattr(it, "float") else it) for it in held] + [
        batch.samples,
        *(batch.columns[name] for name in sorted(batch.columns)),
    ]


ASKED: list[dict[str, Any]] = [
    {"sites": ["residual"]},
    {"sites": ["residual"], "shuffle": False},
    {"sites": ["neurons"], "layers": [3], "exclude": ["first", "special"], "columns": ("token_ids", "role")},
    {},
    {"sequence": 5, "batch_size": 250, "sites": ["residual"]},
    {"inputs": ("residual", 1), "targets": ("neurons", 3)},
    {"inputs": [("residual", 1), ("residual", 3)], "targets": [("neurons", 3)], "include": {"cells"}},
    {"sites": ["residual"], "dtype": "float32", "seed": 4},
]


# torch takes over what JAX has; what differs is how, and that once for arrays and once for pairs.
OF_TORCH = [(ASKED[0], "torch"), (ASKED[6], "torch")]


@pytest.mark.whole
@pytest.mark.parametrize(("asked", "framework"), [*((asked, "jax") for asked in ASKED), *OF_TORCH], ids=str)
def test_an_epoch_is_that_of_the_host(make: Make, asked: dict[str, Any], framework: str) -> None:
    asked = {"batch_size": 300, "pool_tokens": 2000, "as_": framework} | asked
    ours, theirs = make(**asked, on_device=True), make(**asked, on_device=False)
    count = 0
    for mine, same in zip(ours, theirs, strict=True):
        for one, other in zip(arrays(mine), arrays(same), strict=True):
            np.testing.assert_array_equal(one, other)
        count += 1
    assert count > 10


@pytest.mark.whole
def test_batches_stay_where_the_model_runs(make: Make) -> None:
    batch = next(iter(make(300, on_device=True, as_="jax", sites=["residual"])))
    assert isinstance(batch.activations, jax.Array)
    assert batch.activations.dtype.name == "bfloat16"


def test_norms_on_the_device_are_those_of_the_host() -> None:
    values = np.random.default_rng(0).normal(size=(2, 3, 64)).astype(np.float32)
    step = DeviceStep.of({Tap(0, "residual"): jax.numpy.asarray(values)})
    expected = np.linalg.norm(values.astype(np.float64), axis=-1)
    np.testing.assert_allclose(step.norms[Tap(0, "residual")], expected.reshape(-1), rtol=1e-6)


@pytest.mark.whole
def test_a_state_goes_from_the_host_to_the_device(make: Make) -> None:
    asked: dict[str, Any] = {"sites": ["residual"], "pool_tokens": 1500, "as_": "jax", "exclude": {"first"}}
    asked |= {"center": True, "scale": "unit_rms"}
    host = make(250, on_device=False, **asked)
    list(islice(host, 8))
    device = make(250, on_device=True, **asked)
    device.load_state_dict(json.loads(json.dumps(host.state_dict())))
    for mine, same in zip(device, host, strict=True):
        np.testing.assert_array_equal(mine.token_ids, same.token_ids)
        np.testing.assert_allclose(np.asarray(mine.activations), np.asarray(same.activations), rtol=1e-5, atol=1e-6)


def test_a_nan_on_the_device_ends_the_stream(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    def spoilt(outputs: tuple[jax.Array, ...]) -> list[np.ndarray]:
        return [np.full(output.shape[0] * output.shape[1], np.nan, np.float32) for output in outputs]

    monkeypatch.setattr(staying, "_norms", spoilt)
    with pytest.raises(StorageError, match="the activation has a NaN"):
        list(make(250, on_device=True, as_="jax", sites=["residual"]))


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ((staying, "_norms"), "the device failed on a step of .* Where memory ran out, lower --batch_size"),
        ((device, "_scatter"), "the device failed on a pool of .* Where memory ran out, lower pool_tokens"),
    ],
    ids=["step", "pool"],
)
def test_a_device_that_fails_is_a_device_error(
    make: Make, monkeypatch: pytest.MonkeyPatch, place: tuple[Any, str], message: str
) -> None:
    def fails(*_: Any) -> None:
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")

    monkeypatch.setattr(*place, fails)
    with pytest.raises(DeviceError, match=message):
        list(make(250, on_device=True, as_="jax", sites=["residual"]))


def test_what_cannot_stay_goes_over_the_host(stream: layertap.ActivationStream) -> None:
    model, config = stream._model, stream.batches(10, as_="jax")._config
    assert not stays_on_device(config, model.opened, model.form)
    card = replace(model.opened, platform="gpu")
    assert stays_on_device(config, card, model.form)
    assert not stays_on_device(replace(config, dtype="float16"), card, model.form)
