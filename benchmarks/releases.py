"""Releases of JAX beside each other on this machine's processor: a matrix product, attention over a
packed row, and a whole step of the 0.5B shape (six layers of it), in bfloat16 and float32.

Each release lies in a folder of its own, which goes before the environment's own JAX:

    pip install --no-deps --target releases/0.11.2 jax==0.11.2 jaxlib==0.11.2
    python -m benchmarks.releases --folder releases

Releases take turns, each turn in a process of its own, so that what else the machine does hits all
of them. A ratio is taken within a turn, to the first release, and the median of the turns counts,
with its smallest and largest. Weights are random: what a step computes is not looked at here.
"""

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import tyro

from benchmarks.config import Dtype

_ROW = 2048
_LAYERS = 6
_SAMPLES = 3

Turn = Mapping[str, Mapping[str, float]]
"""What each release took, in milliseconds, by what it did."""


@dataclass(frozen=True)
class ReleasesConfig:
    """Compare releases of JAX on this machine's processor."""

    folder: str
    """Holds a folder for each release, called as the release is."""

    repeats: int = 5
    """How many turns."""

    measured_here: bool = False
    """Measure the release that this process has, and print it as JSON: what each turn runs."""


def main() -> None:
    """Measure, and print a table; or be one turn of one release."""
    config = tyro.cli(ReleasesConfig, use_underscores=True)
    if config.measured_here:
        print(json.dumps(measure()))
        return
    releases = sorted(path for path in Path(config.folder).iterdir() if (path / "jax").is_dir())
    if not releases:
        sys.exit(f"{config.folder}: no release is in it; the first lines of benchmarks/releases.py say how to get one")
    turns: list[Turn] = []
    for turn in range(config.repeats):
        order = releases if turn % 2 == 0 else releases[::-1]
        turns.append({path.name: _measure_release(config, path) for path in order})
        print(f"turn {turn + 1}: {json.dumps(turns[-1])}", file=sys.stderr, flush=True)
    print(table([path.name for path in releases], turns))


def _measure_release(config: ReleasesConfig, release: Path) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.releases", "--folder", config.folder, "--measured_here"]
    paths = [str(release.resolve()), *sys.path[1:]]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "JAX_PLATFORMS": "cpu"}
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)  # of another release
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    if found.pop("release") != release.name:
        sys.exit(f"{release}: holds another release than its name says")
    return found


def measure() -> dict[str, Any]:
    """Milliseconds of each piece, and the release of jaxlib that took them."""
    from importlib.metadata import version

    found: dict[str, Any] = {"release": version("jaxlib")}
    for dtype in get_args(Dtype):
        found |= {f"{name} {dtype}": took for name, took in _pieces(dtype).items()}
    return found


def _pieces(dtype: Dtype) -> dict[str, float]:
    import jax
    import jax.numpy as jnp
    import numpy as np

    from benchmarks.accelerator.timing import milliseconds
    from benchmarks.ceiling import jax_product
    from layertap.model.config import published_config
    from layertap.model.weights import abstract_model
    from layertap.pipeline.step import StepProgram, plan_for, resolve_taps

    shape = replace(published_config("0.5b"), num_hidden_layers=_LAYERS)
    plan = plan_for("cpu", np.dtype(dtype))
    starts = np.repeat(np.arange(_SAMPLES) * _ROW // _SAMPLES, [682, 683, 683])[None].astype(np.int32)
    ids = np.random.default_rng(0).integers(0, shape.vocab_size, (1, _ROW), dtype=np.int32)

    def draw(*shape: int, as_dtype: Any = dtype) -> jax.Array:  # noqa: ANN401 - what numpy takes for one
        return (0.02 * jax.random.normal(jax.random.key(0), shape)).astype(as_dtype)

    left, right = draw(_ROW, shape.hidden_size), draw(shape.hidden_size, 2 * shape.intermediate_size)
    product = jax_product(dtype)
    group = shape.num_attention_heads // shape.num_key_value_heads
    queries = draw(1, _ROW, shape.num_key_value_heads, group, shape.head_dim)
    keys = draw(1, _ROW, shape.num_key_value_heads, shape.head_dim)
    attend = jax.jit(plan.attend)
    abstract = abstract_model(shape, _LAYERS, np.dtype(dtype))
    program = StepProgram(abstract, resolve_taps((), ("residual",), _LAYERS), plan)
    model = jax.tree.map(lambda leaf: draw(*leaf.shape, as_dtype=leaf.dtype), abstract)
    program.compile((1, _ROW))
    return {
        "product": milliseconds(lambda: product(left, right)),
        "attention": milliseconds(lambda: attend(queries, keys, keys, jnp.asarray(starts))),
        "step": milliseconds(lambda: program.harvest(program.dispatch(model, ids, starts))),
    }


def table(releases: Sequence[str], turns: Sequence[Turn]) -> str:
    """In Markdown: the median of each release, and how many times as fast as the first it was."""
    pieces = list(turns[0][releases[0]])
    rows = [["JAX", *(f"{piece} ms" for piece in pieces)], ["---"] * (len(pieces) + 1)]
    for release in releases:
        cells = []
        for piece in pieces:
            took = statistics.median(turn[release][piece] for turn in turns)
            times = sorted(turn[releases[0]][piece] / turn[release][piece] for turn in turns)
            cells.append(f"{took:.0f}: {statistics.median(times):.2f} ({times[0]:.2f} to {times[-1]:.2f})")
        rows.append([release, *cells])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


if __name__ == "__main__":
    main()
