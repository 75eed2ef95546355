"""Turn rows of a pool into a trainer's batch: normalise, convert dtype and framework, split sides.

It does not know shards or files, so datasets and streams share it. It normalises in float32, one
batch at a time, so pools stay as small as the stored data. That costs two passes over the batch.

torch shares the memory, for bfloat16 through 16-bit integers. JAX copies to its device (on a CPU it
may share the memory). An array is never written to after it was returned. A framework is imported
only if you ask for it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from layertap.core.taps import Tap
from layertap.errors import UsageError
from layertap.reader.blocks import BFLOAT16, Block, numpy_dtype, round_to
from layertap.reader.config import BatchConfig, Framework
from layertap.reader.scaling import Normalisation


@dataclass(frozen=True, eq=False, kw_only=True)
class Batch:
    """Some tokens, or runs of tokens. Row i of every array is the same token or run.

    With `sequence=N`, everything except `samples` has a second axis of N tokens.
    """

    columns: Mapping[str, np.ndarray]
    """The columns that you asked for, and positions; [tokens] or [runs, N]."""
    samples: np.ndarray
    """The sample of each token or run, as an index into the dataset; int64 [rows]."""
    inputs: Any = None
    """[tokens, width] for one tap; for a list of taps like `activations`. None without
    `inputs=`."""
    targets: Any = None
    """The same for `targets=`."""
    all_taps: Any = None
    """The value of `activations`."""

    @property
    def activations(self) -> Any:  # noqa: ANN401 - of a framework that may not be there
        """[tokens, taps, width], an array of the framework that you asked for.

        If taps differ in width, a dict with one [tokens, width] per tap. Raises UsageError if you
        asked for inputs and targets.
        """
        if self.all_taps is None:
            raise UsageError("these batches have inputs and targets; use batch.inputs and batch.targets")
        return self.all_taps

    @property
    def token_ids(self) -> np.ndarray:
        """int32 [tokens]"""
        return self.columns["token_ids"]

    @property
    def positions(self) -> np.ndarray:
        """The position of each token in its sample; int32 [tokens]."""
        return self.columns["positions"]

    def __len__(self) -> int:
        """Return how many rows it has: tokens or runs."""
        return len(self.samples)


class HandOver:
    """Makes batches from rows."""

    def __init__(self, config: BatchConfig, normalisation: Normalisation | None) -> None:
        """Raises UsageError if the framework is not installed."""
        require_framework(config.as_)
        self._config = config
        self._normalisation = normalisation

    def __call__(self, rows: Block) -> Batch:
        """Make the batch of these rows."""
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
        """Return these taps of the rows in the form of a batch."""
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
        """Normalise [..., taps, width], and convert it to the requested dtype and framework."""
        config = self._config
        if self._normalisation is not None:
            array = self._normalisation.apply(array, taps)
            if config.dtype is not None:
                dtype = numpy_dtype(config.dtype)
                on_host = isinstance(array, np.ndarray)
                array = round_to(array, dtype) if on_host else array.astype(dtype)
        return convert(array, config.as_)


def _side_by_side(arrays: Sequence[Any]) -> Any:  # noqa: ANN401 - numpy's or JAX's
    """Concatenate arrays [..., 1, width] along the axis of taps."""
    if isinstance(arrays[0], np.ndarray):
        return np.concatenate(arrays, axis=-2)
    import jax.numpy as jnp

    return jnp.concatenate(arrays, axis=-2)


def _only(array: Any) -> Any:  # noqa: ANN401 - of any framework
    """Remove the axis of taps from [..., 1, width]."""
    return array[..., 0, :]


def pool_dtype(config: BatchConfig, stored: Sequence[str], place: str) -> np.dtype:
    """Choose the dtype of a pool that is filled from these `stored` dtypes.

    Raises UsageError, which names `place`, if there are several and none was requested.
    """
    if config.normalises:
        return numpy_dtype(stored[0] if len(stored) == 1 else "float32")
    if config.dtype is None and len(stored) > 1:
        raise UsageError(f"{place}: is stored as {' and '.join(stored)}; choose one with dtype=")
    return numpy_dtype(config.dtype or stored[0])


def require_framework(framework: Framework) -> None:
    """Raise UsageError if the framework is not installed."""
    try:
        if framework == "torch":
            import torch  # noqa: F401
        elif framework == "jax":
            import jax  # noqa: F401
    except ModuleNotFoundError as error:
        raise UsageError(f'as_="{framework}": {error}; pip install {framework}') from error


def torch_sees(platform: str) -> bool:
    """Return whether torch, which must be installed, can share JAX's arrays on this platform."""
    import torch

    return platform == "gpu" and torch.cuda.is_available()


def convert(array: Any, framework: Framework) -> Any:  # noqa: ANN401 - of a framework that may not be there
    """Convert `array`, of numpy or on a JAX device, to `framework`."""
    if framework == "numpy":
        return array
    if framework == "jax":
        import jax.numpy as jnp

        return jnp.asarray(array)
    import torch

    if not isinstance(array, np.ndarray):
        return torch.utils.dlpack.from_dlpack(array)  # the same memory of the device
    if not array.flags.writeable:  # bytes from a bucket, about which torch warns
        array = array.copy()
    if array.dtype == BFLOAT16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)
