"""Trainers get the values that the batches have."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import commands
import numpy as np
import outputs
import pytest
import torch
from torch.utils.data import DataLoader

from layertap import ActivationDataset
from layertap.core.taps import Tap
from layertap.errors import UsageError
from layertap.export import as_iterable_dataset, for_dictionary_learning, for_saelens, for_sparsify

ADAPTERS = (for_saelens, for_dictionary_learning, for_sparsify)


@pytest.fixture
def dataset(tmp_path: Path) -> ActivationDataset:
    """23 tokens in bfloat16, at two sites of two layers."""
    sites = ("residual", "mlp")
    form = outputs.shard_format(sites, "bfloat16", name="safetensors")
    outputs.write(tmp_path / "run", outputs.three_shards(sites), form)
    return ActivationDataset(tmp_path / "run")


@pytest.mark.parametrize("adapter", ADAPTERS)
@pytest.mark.parametrize("framework", ["numpy", "torch", "jax"])
def test_an_epoch_is_the_batches(adapter: Callable[..., Any], framework: Any, dataset: ActivationDataset) -> None:
    batches = dataset.batches(5, layers=[2], sites=["mlp"], as_=framework)
    found = list(adapter(batches, epochs=2))
    assert [tensor.shape for tensor in found] == [(5, 4)] * 4 + [(3, 4)] + [(5, 4)] * 4 + [(3, 4)]
    assert all(tensor.dtype == torch.float32 for tensor in found)
    expected = dataset.batches(5, layers=[2], sites=["mlp"], dtype="float32")
    for tensor, batch in zip(found, [*expected, *expected], strict=True):
        assert np.array_equal(tensor.numpy(), batch.activations[:, 0])


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_a_trainer_that_stopped_at_the_end_of_an_epoch_goes_on(
    adapter: Callable[..., Any], dataset: ActivationDataset
) -> None:
    asked: dict[str, Any] = {"layers": [2], "sites": ["mlp"]}
    first = dataset.batches(5, **asked)
    tensors = adapter(first, epochs=None)
    whole = [next(tensors) for _ in range(7)]
    first = dataset.batches(5, **asked)
    tensors = adapter(first, epochs=None)
    for _ in range(5):
        next(tensors)
    second = dataset.batches(5, **asked)
    second.load_state_dict(first.state_dict())
    tensors = adapter(second, epochs=None)
    for expected in whole[5:]:
        assert torch.equal(next(tensors), expected)
    third = dataset.batches(5, **asked)
    third.load_state_dict(first.state_dict())
    assert list(adapter(third, epochs=1)) == []


def test_without_a_number_of_epochs_there_is_no_end(dataset: ActivationDataset) -> None:
    batches = dataset.batches(20, layers=[2], sites=["mlp"])
    tensors = for_saelens(batches)
    assert [len(next(tensors)) for _ in range(5)] == [20, 3, 20, 3, 20]
    assert batches.state_dict()["epoch"] == 2


def test_a_trainer_goes_on_where_it_stood(dataset: ActivationDataset) -> None:
    def batches() -> Any:
        return dataset.batches(4, layers=[2], sites=["mlp"])

    through = for_saelens(batches())
    expected = [next(through) for _ in range(9)]
    first = batches()
    tensors = for_saelens(first)
    found = [next(tensors) for _ in range(7)]
    second = batches()
    second.load_state_dict(first.state_dict())
    rest = for_saelens(second)
    found += [next(rest), next(rest)]
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def test_one_of_several_taps(dataset: ActivationDataset) -> None:
    batches = dataset.batches(23, shuffle=False)
    (found,) = for_saelens(batches, tap=(2, "mlp"), epochs=1)
    values = np.concatenate([sample.activation(2, "mlp") for sample in dataset])
    assert np.array_equal(found.numpy(), values.astype(np.float32))
    with pytest.raises(UsageError, match=r"several taps; give tap=, one of \(0, 'residual'\)"):
        for_saelens(batches)
    with pytest.raises(UsageError, match=r"no tap \(1, 'mlp'\); they have"):
        for_saelens(batches, tap=(1, "mlp"))


def test_a_tap_of_several_widths(tmp_path: Path) -> None:
    widths = {Tap(0, "residual"): 4, Tap(0, "neurons"): 7}
    samples = [[outputs.sample(0, 6, widths=widths)]]
    form = outputs.shard_format(name="safetensors")
    outputs.write(tmp_path / "run", samples, type(form)(widths, form.dtype, False, "safetensors", False))
    dataset = ActivationDataset(tmp_path / "run")
    (found,) = for_sparsify(dataset.batches(6, shuffle=False), tap=(0, "neurons"))
    assert np.array_equal(found.numpy(), dataset[0].activation(0, "neurons"))
    with pytest.raises(UsageError, match="the taps differ in width"):
        next(for_dictionary_learning(dataset.batches(6), crosscoder=True))


def test_a_crosscoder_has_all_taps(dataset: ActivationDataset) -> None:
    batches = dataset.batches(23, sites=["residual"], shuffle=False, dtype="float32")
    data = for_dictionary_learning(batches, crosscoder=True, epochs=1)
    assert data.config == {"source": "layertap", "taps": [[0, "residual"], [2, "residual"]], "dtype": "float32"}
    (found,) = data
    (batch,) = dataset.batches(23, sites=["residual"], shuffle=False, dtype="float32")
    assert np.array_equal(found.numpy(), batch.activations)
    with pytest.raises(UsageError, match="tap= or crosscoder=True"):
        for_dictionary_learning(batches, crosscoder=True, tap=(0, "residual"))


def test_a_trainer_may_write_into_what_it_got(tmp_path: Path) -> None:
    outputs.write(tmp_path / "plain", outputs.three_shards(), outputs.shard_format(name="safetensors"))
    batches = ActivationDataset(tmp_path / "plain").batches(23, layers=[2], shuffle=False)  # views of the files' maps
    data = for_dictionary_learning(batches)
    first = next(data)
    expected = first.clone()
    first /= 3
    assert torch.equal(next(data), expected)


def test_runs_of_tokens_come_as_tokens(dataset: ActivationDataset) -> None:
    batches = dataset.batches(6, layers=[2], sites=["mlp"], sequence=3, dtype="float32")
    (batch, *_), (tensor, *_) = (
        batches,
        for_saelens(dataset.batches(6, layers=[2], sites=["mlp"], sequence=3), epochs=1),
    )
    assert tensor.shape == (6, 4)
    assert np.array_equal(tensor.numpy(), batch.activations.reshape(6, 4))


def test_bfloat16_may_stay(dataset: ActivationDataset) -> None:
    tensor = next(for_saelens(dataset.batches(5, layers=[2], sites=["mlp"]), dtype="bfloat16"))
    assert tensor.dtype == torch.bfloat16


def test_an_epoch_without_a_batch_is_no_endless_loop(dataset: ActivationDataset) -> None:
    tensors = for_saelens(dataset.batches(24, layers=[2], sites=["mlp"], drop_last=True))
    with pytest.raises(UsageError, match="the epoch has no batch"):
        next(tensors)


def test_a_data_loader_takes_them_without_workers(dataset: ActivationDataset) -> None:
    batches = dataset.batches(5, layers=[2], sites=["mlp"], shuffle=False)
    tensors = as_iterable_dataset(batches)
    found = torch.cat(list(DataLoader(tensors, batch_size=None)))
    values = np.concatenate([sample.activation(2, "mlp") for sample in dataset])
    assert np.array_equal(found.numpy(), values.astype(np.float32))
    again = torch.cat(list(DataLoader(tensors, batch_size=None)))
    assert torch.equal(again, found), "another epoch of an unshuffled dataset"


WITH_A_WORKER = """
import sys, torch, layertap, layertap.export
batches = layertap.ActivationDataset(sys.argv[1]).batches(5, layers=[2], sites=["mlp"])
next(iter(torch.utils.data.DataLoader(layertap.export.as_iterable_dataset(batches), batch_size=None, num_workers=1)))
"""


@pytest.mark.whole
def test_a_worker_of_a_data_loader_is_refused(dataset: ActivationDataset, tmp_path: Path) -> None:
    # In a process of its own: a worker is a fork, which JAX here would warn of.
    done = commands.run(["-c", WITH_A_WORKER, str(tmp_path / "run")], tmp_path)
    assert done.returncode == 1
    assert "the batches already read ahead; give the DataLoader num_workers=0" in done.stderr


def test_importing_them_brings_no_framework(tmp_path: Path) -> None:
    program = "import sys, layertap.export; print([n for n in ('torch', 'jax', 'pyarrow') if n in sys.modules])"
    assert commands.run(["-c", program], tmp_path).stdout == "[]\n"
