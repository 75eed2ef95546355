"""Rows of a pool as the batch that a trainer gets: normalised, in its dtype, as arrays of its
framework, and as inputs and targets where it asked for these.

It knows neither shards nor files, so that whatever fills pools hands them over alike. Normalising
is done in float32 here, a batch at a time: pools stay as narrow as what is stored. It costs two
passes over the batch.

torch takes the memory as it is, bfloat16 too, by way of 16-bit integers. JAX copies to its device
(on CPU it may take the memory as it is). No array is written to after it was handed over.
Frameworks are imported when you ask for them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from layertap.core.taps import Tap
from layertap.errors import UsageError
from layertap.reader.blocks import BFLOAT16, Block, numpy_dtype, rounded
from layertap.reader.config import BatchConfig, Framework
from layertap.reader.scaling import Normalisation


@dataclass(frozen=True, eq=False, kw_only=True)
class Batch:
    """Some tokens, or runs of tokens; row i of everything is the same one.

    With `sequence=N`, an axis of N tokens follows the first one of everything but `samples`.
    """

    columns: Mapping[str, np.ndarray]
    """The columns that you asked for, and positions; [tokens], or [runs, N]."""
    samples: np.ndarray
    """Which sample each token or run is from, as `dataset[i]` counts them; int64 [rows]."""
    inputs: Any = None
    """[tokens, width] of the tap that you named, or of a list of taps as `activations` has them;
    None where you named none."""
    targets: Any = None
    """The same of `targets=`."""
    all_taps: Any = None
    """What `activations` hands out."""

    @property
    def activations(self) -> Any:  # noqa: ANN401 - of a framework that may not be there
        """[tokens, taps, width], an array of the framework that you asked for. Where taps differ in
        width: a dict with one [tokens, width] for each tap.

        Raises UsageError where you asked for inputs and targets.
        """
        if self.all_taps is None:
            raise UsageError("these batches have inputs and targets, so take batch.inputs and batch.targets")
        return self.all_taps

    @property
    def token_ids(self) -> np.ndarray:
        """int32 [tokens]"""
        return self.columns["token_ids"]

    @property
    def positions(self) -> np.ndarray:
        """The token's place in its sample; int32 [tokens]."""
        return self.columns["positions"]

    def __len__(self) -> int:
        """How many rows it has: tokens, or runs of them."""
        return len(self.samples)


class HandOver:
    """Makes batches of rows."""

    def __init__(self, config: BatchConfig, normalisation: Normalisation | None) -> None:
        """Raises UsageError where the framework is not installed."""
        require_framework(config.as_)
        self._config = config
        self._normalisation = normalisation

    def __call__(self, rows: Block) -> Batch:
        """The batch of these rows."""
        config = self._config
        if not config.inputs:
            return Batch(columns=rows.columns, samples=rows.samples, all_taps=self._side(rows, config.taps))
        inputs, targets = (self._side(rows, taps) for taps in (config.inputs, config.targets))
        if "inputs" in config.single:
            inputs = _only(inputs)
        if "targets" in config.single:
            targets = _only(targets)
        return Batch(columns=rows.columns, samples=rows.samples, inputs=inputs, targets=targets)

    def _side(self, rows: Block, taps: tuple[Tap, ...]) -> Any:  # noqa: ANN401
        """These taps of the rows, as a batch hands them out."""
        places = [self._config.taps.index(tap) for tap in taps]
        if isinstance(rows.activations, list):
            arrays = [rows.activations[place][..., None, :] for place in places]
            if len({array.shape[-1] for array in arrays}) > 1:
                return {tap: self._finish(array, [tap])[..., 0, :] for tap, array in zip(taps, arrays, strict=True)}
            return self._finish(arrays[0] if len(arrays) == 1 else _side_by_side(arrays), taps)
        together = list(range(places[0], places[0] + len(places))) == places
        picked: slice | list[int] = slice(places[0], places[0] + len(places)) if together else places
        return self._finish(rows.activations[..., picked, :], taps)

    def _finish(self, array: np.ndarray, taps: Sequence[Tap]) -> Any:  # noqa: ANN401
        """[..., taps, width]: normalised, in the dtype and of the framework that were asked for."""
        config = self._config
        if self._normalisation is not None:
            array = self._normalisation.apply(array, taps)
            if config.dtype is not None:
                dtype = numpy_dtype(config.dtype)
                on_host = isinstance(array, np.ndarray)
                array = rounded(array, dtype) if on_host else array.astype(dtype)
        return convert(array, config.as_)


def _side_by_side(arrays: Sequence[Any]) -> Any:  # noqa: ANN401 - numpy's or JAX's
    """Arrays [..., 1, width] as one with an axis of taps."""
    if isinstance(arrays[0], np.ndarray):
        return np.concatenate(arrays, axis=-2)
    import jax.numpy as jnp

    return jnp.concatenate(arrays, axis=-2)


def _only(array: Any) -> Any:  # noqa: ANN401 - of any framework
    """[..., 1, width] without the axis of taps."""
    return array[..., 0, :]


def pool_dtype(config: BatchConfig, stored: Sequence[str], place: str) -> np.dtype:
    """As what rows wait in a pool that is filled with what is `stored` in these dtypes.

    Raises UsageError, which names the `place`, where several are stored and none was asked for.
    """
    if config.normalises:
        return numpy_dtype(stored[0] if len(stored) == 1 else "float32")
    if config.dtype is None and len(stored) > 1:
        raise UsageError(f"{place}: is stored as {' and '.join(stored)}; give dtype=")
    return numpy_dtype(config.dtype or stored[0])


def require_framework(framework: Framework) -> None:
    """Raise UsageError where the framework is not installed."""
    try:
        if framework == "torch":
            import torch  # noqa: F401
        elif framework == "jax":
            import jax  # noqa: F401
    except ModuleNotFoundError as error:
        raise UsageError(f'as_="{framework}": {error}; pip install {framework}') from error


def torch_sees(platform: str) -> bool:
    """Whether torch, which is there, can take over arrays of JAX on this platform."""
    import torch

    return platform == "gpu" and torch.cuda.is_available()


def convert(array: Any, framework: Framework) -> Any:  # noqa: ANN401 - of a framework that may not be there
    """`array`, numpy's or on a device of JAX, as one of `framework`."""
    if framework == "numpy":
        return array
    if framework == "jax":
        import jax.numpy as jnp

        return jnp.asarray(array)
    import torch

    if not isinstance(array, np.ndarray):
        return torch.utils.dlpack.from_dlpack(array)  # the same memory of the device
    if not array.flags.writeable:  # bytes from a bucket, which torch warns of
        array = array.copy()
    if array.dtype == BFLOAT16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)
