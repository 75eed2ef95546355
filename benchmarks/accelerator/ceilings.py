"""The machine's own limit, measured in the same run (benchmarks/ceiling.py)."""

from functools import partial

from benchmarks.accelerator.config import PartConfig
from benchmarks.accelerator.part import Cases, Figures
from benchmarks.ceiling import PRODUCTS, Products, jax_gflops, torch_gflops
from benchmarks.config import Dtype
from benchmarks.device import TORCH_DEVICES

_REHEARSED = Products(256, 1)


def cases(config: PartConfig) -> Cases:
    """bfloat16 first: that is what the speeds are compared with."""
    return {
        f"{library} {dtype}": partial(_rate, config, library, dtype)
        for dtype in ("bfloat16", "float32")
        for library in ("torch", "jax")
    }


def _rate(config: PartConfig, library: str, dtype: Dtype) -> Figures:
    products = PRODUCTS["gpu"] if config.platform == "gpu" else _REHEARSED
    if library == "torch":
        rate = torch_gflops(products, dtype, TORCH_DEVICES[config.platform])
    else:
        rate = jax_gflops(products, dtype)
    return {"square": products.square, "TFLOP/s": rate / 1e3}
