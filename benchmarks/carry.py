"""`python -m benchmarks.carry DIR`: what an image with JAX, torch and transformers lacks, in one
folder, unpacked.

An accelerator that is lent has no network. A CUDA image holds JAX, torch, flax, transformers and
what these bring (numpy, safetensors, tokenizers, huggingface_hub, jinja2, fsspec, tqdm, jaxtyping);
what Layertap needs beside them is a few small packages. pip fetches their wheels here, for the
image's Python and for x86-64 Linux, and unpacks them; there, nothing is installed:

    PYTHONPATH=DIR:src python3 -m benchmarks.accelerator --out OUT

numba is not among them, because its LLVM alone is 170 MB: where the image lacks it, numpy encodes.

Unpacked, because a folder on the path needs neither pip nor a second command. Without their own
dependencies, so that nothing of the image's is put in the shade. Google's client is not among them:
only buckets need it.
"""

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

PACKAGES = ("crc32c", "docstring_parser", "isal", "typeguard", "tyro")

_CONSTRAINTS = Path(__file__).parents[1] / "constraints.txt"
_PLATFORMS = (*(f"manylinux_2_{minor}_x86_64" for minor in (28, 27, 26, 24, 17)), "manylinux2014_x86_64")
_LARGEST_MB = 40


@dataclass(frozen=True)
class CarryConfig:
    """Fill a folder with the packages that a CUDA image with JAX, torch and transformers lacks."""

    folder: Annotated[str, tyro.conf.Positional]
    """Where to; made if it is not there."""

    python: str = "3.12"
    """The image's Python."""

    packages: tuple[str, ...] = PACKAGES
    """Those to carry, in the versions of constraints.txt; name more where the image holds less."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Fetch, unpack, and list what is there. This ends with status 1 if it is too much to carry."""
    config = tyro.cli(CarryConfig, args=arguments, use_underscores=True)
    subprocess.run(pip_command(config), check=True)
    folder = Path(config.folder)
    for described in sorted(folder.glob("*.dist-info")):
        print(described.name.removesuffix(".dist-info"))
    megabytes = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6
    print(f"{folder}: {megabytes:.1f} MB")
    if megabytes > _LARGEST_MB:
        sys.exit(f"more than {_LARGEST_MB} MB: too much to carry; leave out what the image holds")


def pip_command(config: CarryConfig) -> list[str]:
    """Return the command that fetches only wheels, for the image and not for this machine."""
    platforms = [flag for platform in _PLATFORMS for flag in ("--platform", platform)]
    return [
        *(sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--upgrade"),
        *("--no-deps", "--no-compile", "--only-binary=:all:", "--constraint", str(_CONSTRAINTS)),
        *("--implementation", "cp", "--python-version", config.python, *platforms),
        *("--target", config.folder, *config.packages),
    ]


if __name__ == "__main__":
    main()
