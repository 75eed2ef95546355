"""numpy arrays as arrays of other frameworks, which are imported when they are asked for.

torch takes the memory as it is, bfloat16 too, by way of 16-bit integers. JAX copies to its device (on CPU it may take
the memory as it is). No array is written to after it was handed over.
"""

from typing import Any

import ml_dtypes
import numpy as np

from layertap.errors import UsageError
from layertap.reader.config import Framework

_BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


def numpy_dtype(name: str) -> np.dtype:
    """The dtype of this name, bfloat16 too."""
    return _BFLOAT16 if name == "bfloat16" else np.dtype(name)


def require(framework: Framework) -> None:
    """Raise UsageError where the framework is not installed."""
    try:
        if framework == "torch":
            import torch  # noqa: F401
        elif framework == "jax":
            import jax  # noqa: F401
    except ModuleNotFoundError as error:
        raise UsageError(f'as_="{framework}": {error}; pip install {framework}') from error


def convert(array: np.ndarray, framework: Framework) -> Any:  # noqa: ANN401 - of a framework that may not be there
    """`array` as one of `framework`."""
    if framework == "numpy":
        return array
    if framework == "jax":
        import jax.numpy as jnp

        return jnp.asarray(array)
    import torch

    if not array.flags.writeable:  # bytes from a bucket, which torch warns of
        array = array.copy()
    if array.dtype == _BFLOAT16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)
