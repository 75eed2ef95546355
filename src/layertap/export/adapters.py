"""Give trainers the batches they expect, without a copy on disk or another file format.

Trainers take an iterator of torch tensors [tokens, width]. Our adapters take anything that yields
`Batch` objects, from a dataset or a stream, epoch after epoch. They choose a tap, convert it to a
torch tensor if needed (JAX arrays go through DLPack and stay on their device), and copy it to
`device` in `dtype`. Runs of tokens (`sequence=N`) become single tokens.

The trainer owns the copy. It is needed because dictionary_learning divides its batches in place,
and an unshuffled batch is a view of a mapped file: the next epoch would be divided twice.

The batches know the trainer's position: save `batches.state_dict()` in the trainer's checkpoint,
and training resumes with exactly the next batches.

torch is imported only when you call an adapter.
"""

from collections.abc import Iterator, Mapping
from itertools import count
from typing import Any, Protocol

import numpy as np

from layertap.core.taps import Tap
from layertap.errors import UsageError
from layertap.reader.handover import Batch, convert, require_framework

Tensor = Any
"""A torch.Tensor; torch may not be installed."""


class BatchSource(Protocol):
    """The batches of an `ActivationDataset` or an `ActivationStream`."""

    taps: tuple[Tap, ...]

    def state_dict(self) -> dict[str, Any]:
        """Return the position of the next batch."""

    def __iter__(self) -> Iterator[Batch]:
        """Iterate over the rest of an epoch, and next time over the next one."""


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
        """Facts that a trainer may save with its result."""

    def __next__(self) -> Tensor:
        return next(self._tensors)

    def _tensor(self, batch: Batch) -> Tensor:
        import torch

        found = batch.activations
        if self._place is None:
            if isinstance(found, Mapping):  # taps of several widths
                raise UsageError(
                    "the taps differ in width, but a crosscoder needs one array of all; choose taps of one width"
                )
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
    """Make the `data_provider` of SAELens' `SAETrainer`: an iterator of tensors [tokens, width].

    `tap` is (layer, site); you may leave it out if the batches have one tap. `epochs` is the number
    of epochs, by default infinite, because the trainer stops by itself. `dtype` is the dtype of the
    SAE. Raises UsageError if torch is not installed, or the tap is missing.
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
    """Make the `data` of dictionary_learning's `trainSAE`: an iterator of tensors [tokens, width].

    With `crosscoder`, tensors are [tokens, taps, width], with all taps of the batches, which must
    have one width. Its `config` goes into the trained dictionary's config.json. Raises UsageError
    like `for_saelens`.
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
    """Make the inputs of EleutherAI's `sparsify.SparseCoder`, for your own training loop.

    It yields tensors [tokens, width], by default for one epoch. (sparsify's own `Trainer` runs the
    language model itself.) Raises UsageError like `for_saelens`.
    """
    return TensorIterator(batches, tap, epochs, device, dtype)


def as_iterable_dataset(
    batches: BatchSource,
    *,
    tap: tuple[int, str] | None = None,
    epochs: int | None = 1,
    dtype: str = "float32",
) -> Any:  # noqa: ANN401 - torch may not be installed
    """Make a torch `IterableDataset` for `DataLoader(it, batch_size=None)`.

    It yields tensors [tokens, width]. Workers of a DataLoader are refused: each would return every
    token, and the batches read ahead by themselves. Raises UsageError like `for_saelens`.
    """
    require_framework("torch")
    from torch.utils.data import IterableDataset, get_worker_info

    class Activations(IterableDataset):  # type: ignore[type-arg, misc, unused-ignore]
        """Iterates over the batches of `epochs` epochs, each time."""

        def __iter__(self) -> Iterator[Tensor]:
            if get_worker_info() is not None:
                raise UsageError("the batches already read ahead; give the DataLoader num_workers=0")
            return TensorIterator(batches, tap, epochs, None, dtype)

    return Activations()


def _chosen(taps: tuple[Tap, ...], tap: tuple[int, str] | None) -> Tap:
    if tap is None and len(taps) == 1:
        return taps[0]
    offered = ", ".join(str(tuple(one)) for one in taps)
    if tap is None:
        raise UsageError(f"the batches have several taps; give tap=, one of {offered}")
    found = next((one for one in taps if tuple(one) == tuple(tap)), None)
    if found is None:
        raise UsageError(f"the batches have no tap {tuple(tap)}; they have {offered}")
    return found


def _epochs(batches: BatchSource, epochs: int | None) -> Iterator[Batch]:
    """Yield the batches of this many epochs; the first may be partial.

    Raises UsageError if a whole epoch has no batch.
    """
    for epoch in count():
        if epochs is not None and epoch >= epochs:
            return
        some = batches.state_dict()["batch"] > 0  # an epoch that was begun may have nothing left
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
