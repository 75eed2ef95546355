"""Batches as trainers want them: no copy on disk, no file of another format.

Trainers take an iterator of torch tensors [tokens, width]. Ours take anything that yields `Batch`
objects, a dataset's batches or a stream's, epoch after epoch. What is done to a batch is to choose
a tap, to make a torch tensor of it where it is none (JAX arrays go by DLPack and stay on their
device), and to copy it, in `dtype`, to `device`. Runs of tokens (`sequence=N`) come as tokens.

The copy is the trainer's own. dictionary_learning divides its batches in place, and a batch that is
not shuffled is a view of a file's map: the next epoch would have been divided twice.

Where a trainer stands is known to the batches themselves: keep `batches.state_dict()` in the
trainer's checkpoint, and it goes on with exactly the batches that would have come.

torch is imported when an adapter is called, not before.
"""

from collections.abc import Iterator, Mapping
from itertools import count
from typing import Any, Protocol

import numpy as np

from layertap.core.taps import Tap
from layertap.errors import UsageError
from layertap.reader.handover import Batch, convert, require_framework

Tensor = Any
"""A torch.Tensor; torch may not be there."""


class BatchSource(Protocol):
    """`ActivationDataset.batches(...)`, or a stream's."""

    taps: tuple[Tap, ...]

    def state_dict(self) -> dict[str, Any]:
        """Where the next batch stands."""

    def __iter__(self) -> Iterator[Batch]:
        """The batches of what is left of an epoch, and next time of the next one."""


class TensorIterator(Iterator[Tensor]):
    """Batches as tensors [tokens, width], epoch after epoch."""

    def __init__(
        self,
        batches: BatchSource,
        tap: tuple[int, str] | None,
        epochs: int | None,
        device: object,
        dtype: str,
        *,
        all_taps: bool = False,
    ) -> None:
        require_framework("torch")
        self._tap = None if all_taps else _chosen(batches.taps, tap)
        self._device = device
        self._dtype = dtype
        self._tensors = map(self._tensor, _epochs(batches, epochs))
        taps = batches.taps if self._tap is None else (self._tap,)
        self._place = None if self._tap is None else batches.taps.index(self._tap)
        self.config: Mapping[str, Any] = {"source": "layertap", "taps": [list(one) for one in taps], "dtype": dtype}
        """What a trainer may keep beside what it trained."""

    def __next__(self) -> Tensor:
        return next(self._tensors)

    def _tensor(self, batch: Batch) -> Tensor:
        import torch

        found = batch.activations
        if self._place is None:
            if isinstance(found, Mapping):  # taps of several widths
                raise UsageError("the taps differ in width, and a crosscoder takes one array of all; choose others")
            found = found.reshape(-1, *found.shape[-2:])
        else:
            one = found[self._tap] if isinstance(found, Mapping) else found[..., self._place, :]
            found = one.reshape(-1, one.shape[-1])
        return _as_torch(found).to(device=self._device, dtype=getattr(torch, self._dtype), copy=True)


def for_saelens(
    batches: BatchSource,
    *,
    tap: tuple[int, str] | None = None,
    epochs: int | None = None,
    device: object = None,
    dtype: str = "float32",
) -> TensorIterator:
    """The `data_provider` of SAELens' `SAETrainer`: an iterator of tensors [tokens, width].

    `tap` is (layer, site), and may be left out where the batches have one. `epochs` is how many
    there are, by default without end, as the trainer stops by itself. `dtype` is that of the SAE.
    Raises UsageError where torch is not installed, or a tap is not there.
    """
    return TensorIterator(batches, tap, epochs, device, dtype)


def for_dictionary_learning(
    batches: BatchSource,
    *,
    tap: tuple[int, str] | None = None,
    epochs: int | None = None,
    device: object = None,
    dtype: str = "float32",
    crosscoder: bool = False,
) -> TensorIterator:
    """The `data` of dictionary_learning's `trainSAE`: an iterator of tensors [tokens, width].

    `crosscoder`: [tokens, taps, width] instead, all taps of the batches, which have one width. Its
    `config` goes into the trained dictionary's config.json. Raises UsageError as `for_saelens`
    does.
    """
    if crosscoder and tap is not None:
        raise UsageError("a crosscoder takes all taps of the batches; give tap= or crosscoder=True")
    return TensorIterator(batches, tap, epochs, device, dtype, all_taps=crosscoder)


def for_sparsify(
    batches: BatchSource,
    *,
    tap: tuple[int, str] | None = None,
    epochs: int | None = 1,
    device: object = None,
    dtype: str = "float32",
) -> TensorIterator:
    """What EleutherAI's `sparsify.SparseCoder` is called with, in a loop of your own: tensors
    [tokens, width], of one epoch where you ask for no other number.

    (Its own `Trainer` runs the language model itself.) Raises UsageError as `for_saelens` does.
    """
    return TensorIterator(batches, tap, epochs, device, dtype)


def as_iterable_dataset(
    batches: BatchSource,
    *,
    tap: tuple[int, str] | None = None,
    epochs: int | None = 1,
    dtype: str = "float32",
) -> Any:  # noqa: ANN401 - torch may not be there
    """A torch `IterableDataset` of tensors [tokens, width], for `DataLoader(it, batch_size=None)`.

    Batches read ahead by themselves: workers of a DataLoader would each hand out every token, so
    they are refused. Raises UsageError as `for_saelens` does.
    """
    require_framework("torch")
    from torch.utils.data import IterableDataset, get_worker_info

    class Activations(IterableDataset):  # type: ignore[type-arg, misc, unused-ignore]
        """The batches of `epochs` epochs, each time."""

        def __iter__(self) -> Iterator[Tensor]:
            if get_worker_info() is not None:
                raise UsageError("the batches read ahead by themselves; give the DataLoader num_workers=0")
            return TensorIterator(batches, tap, epochs, None, dtype)

    return Activations()


def _chosen(taps: tuple[Tap, ...], tap: tuple[int, str] | None) -> Tap:
    if tap is None and len(taps) == 1:
        return taps[0]
    offered = ", ".join(str(tuple(one)) for one in taps)
    if tap is None:
        raise UsageError(f"the batches have several taps; say which by tap=, one of {offered}")
    found = next((one for one in taps if tuple(one) == tuple(tap)), None)
    if found is None:
        raise UsageError(f"the batches have no tap {tuple(tap)}; they have {offered}")
    return found


def _epochs(batches: BatchSource, epochs: int | None) -> Iterator[Batch]:
    """The batches of so many epochs, or of what is left of the first one; raises UsageError where a
    whole epoch has none.
    """
    for epoch in count():
        if epochs is not None and epoch >= epochs:
            return
        some = batches.state_dict()["batch"] > 0  # of an epoch that was begun, nothing may be left
        for batch in batches:
            some = True
            yield batch
        if not some:
            raise UsageError("the epoch has no batch; ask for smaller batches, drop_last=False or other tokens")


def _as_torch(array: Any) -> Tensor:  # noqa: ANN401 - of any framework
    import torch
    from torch.utils.dlpack import from_dlpack

    if isinstance(array, torch.Tensor):
        return array
    return convert(array, "torch") if isinstance(array, np.ndarray) else from_dlpack(array)
