"""What the machine can do: the largest rate of a matrix product that torch or JAX reaches, and of
writing to this disk.

A card is given larger products, and several before the clock is read, since one is over before it
is worth a look; and float32 means float32 to both, not TF32: that is what Layertap computes in, and
torch's default.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.config import ContenderConfig, Device, Dtype
from benchmarks.device import TORCH_DEVICES
from benchmarks.workload import Figures, disk_mb_per_second, seconds_of


@dataclass(frozen=True)
class Products:
    """Square matrix products, so many for each reading of the clock."""

    square: int
    count: int

    def gflops(self, run: Callable[[], object]) -> float:
        """Return the rate of the fastest of five runs of all of them, after one warm-up."""
        run()
        return 2 * self.square**3 * self.count / min(seconds_of(run) for _ in range(5)) / 1e9


PRODUCTS: dict[Device, Products] = {"cpu": Products(4096, 1), "gpu": Products(8192, 16)}
"""What is measured on each device."""


def ceiling(config: ContenderConfig) -> Figures:
    """Return GFLOP/s of both libraries and of the better one, and MB/s of the disk."""
    products = PRODUCTS[config.device]
    figures = {
        "torch_gflops": torch_gflops(products, config.dtype, TORCH_DEVICES[config.device]),
        "jax_gflops": jax_gflops(products, config.dtype),
        "disk_mb": disk_mb_per_second(Path(config.output_dir)),
    }
    return figures | {"gflops": max(figures["torch_gflops"], figures["jax_gflops"])}


def torch_gflops(products: Products, dtype: Dtype, device: str) -> float:
    """Return the rate of torch. On a card all products are queued before it waits."""
    import torch

    shape = (products.square, products.square)
    left, right = (torch.randn(shape).to(device, getattr(torch, dtype)) for _ in range(2))

    def run() -> None:
        for _ in range(products.count):
            torch.mm(left, right)
        if device == "cuda":
            torch.cuda.synchronize()

    return products.gflops(run)


def jax_gflops(products: Products, dtype: Dtype) -> float:
    """Return the rate of JAX, for products that sum in float32."""
    import jax

    shape = (products.square, products.square)
    left, right = (jax.random.normal(jax.random.key(seed), shape).astype(dtype) for seed in range(2))
    product = jax_product(dtype)
    return products.gflops(lambda: [product(left, right) for _ in range(products.count)][-1].block_until_ready())


def jax_product(dtype: Dtype) -> Callable[..., Any]:
    """Return a compiled product of two matrices of this dtype, which sums in float32."""
    import jax
    import jax.numpy as jnp

    precision = jax.lax.Precision.HIGHEST if dtype == "float32" else jax.lax.Precision.DEFAULT
    return jax.jit(lambda left, right: jnp.matmul(left, right, precision=precision, preferred_element_type=jnp.float32))
