"""What a step takes of a chip's memory, and how many rows fit.

On TPU the real compiler says so, where it is installed (`tpu_compile`). Elsewhere, and with
`--no_compiler`, it is estimated from shapes: good enough to choose a number of rows, not to go to
the limit. A step may take `_USABLE` of a chip's memory by the estimate, since frameworks keep some
for themselves.

Without a number of rows, the plan recommends the largest power of two that fits, `_MOST_ROWS` at
most: more rows make products no faster, and more of a window is left over for steps of one row. The
compiler takes a minute for each question, so it is not asked about rows that are far too many by
the estimate.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.util import find_spec
from math import gcd

import numpy as np

from layertap.errors import DoesNotFitError
from layertap.extract.backend import usual_batch_size
from layertap.extract.packing import row_ladder
from layertap.extract.step import transfer_dtype
from layertap.model import weights
from layertap.model.config import Qwen2Config
from layertap.model.mesh import MeshShape, auto_shape, parse_mesh, weight_bytes
from layertap.plan.accelerators import Accelerator
from layertap.plan.planned import PlannedRun
from layertap.plan.tpu_compile import TpuStep, compile_step

_USABLE = 0.9
_WORTH_ASKING = 1.2  # estimates are within 10 % of the compiler's figures
_MOST_ROWS = 16
# Float32 values of the stream's width that a token takes at once: the stream, queries, keys,
# temporaries; and the share of all activations that is on a TPU, on its way to the host. Fitted to
# the compiler's figures (docs/LOG.md).
_STREAMS = 6
_ON_THEIR_WAY = 0.7
# Float32 values of the MLP's width, for the tokens that go through it together.
_MLP_VALUES = 3
_TOKEN_BLOCK = {"tpu": 2048, "gpu": 2048, "cpu": 512}
_FLOAT32 = 4
_GATHERED = 2  # layers (model/mesh.py)
_IN_FLIGHT = 2  # steps whose outputs are on a GPU, or in a CPU's memory


@dataclass(frozen=True)
class ChipMemory:
    """What a step has in the memory of one chip at its worst moment."""

    peak: int
    compiled: bool
    """Whether the real compiler said so; else it is an estimate."""


@dataclass(frozen=True)
class Fit:
    """The steps that fit."""

    rows: int
    """Rows of the first rung on each chip: those asked for, where they fit; else recommended."""
    memory: ChipMemory
    longest_row: int
    """The longest row, of which there is one on each chip."""
    longest_memory: ChipMemory


Measure = Callable[[int, int], ChipMemory]
"""Of rows on each chip and their length; raises DoesNotFitError."""


def find_fit(measure: Measure, rows: int, ladder: Sequence[int]) -> Fit:
    """The most rows of the first rung, of `rows` halved and halved again, and the longest row of
    `ladder` that fit.

    Raises DoesNotFitError where one row of the first rung is too much.
    """
    fitting, memory = _first_that_fits(measure, [(rows >> power, ladder[0]) for power in range(rows.bit_length())])
    if len(ladder) == 1 and fitting[0] == 1:
        return Fit(1, memory, ladder[0], memory)
    longest, longest_memory = _first_that_fits(measure, [(1, length) for length in reversed(ladder)])
    return Fit(fitting[0], memory, longest[1], longest_memory)


def _first_that_fits(measure: Measure, shapes: Sequence[tuple[int, int]]) -> tuple[tuple[int, int], ChipMemory]:
    for shape in shapes[:-1]:
        try:
            return shape, measure(*shape)
        except DoesNotFitError:
            continue
    return shapes[-1], measure(*shapes[-1])


def mesh_shape(run: PlannedRun, accelerator: Accelerator) -> MeshShape:
    """How the accelerator's chips share rows and weights: the run's own rule."""
    if run.config.mesh != "auto":
        return parse_mesh(run.config.mesh)
    memory = None if accelerator.platform == "cpu" else accelerator.memory_bytes
    return auto_shape(accelerator.chips, run_weight_bytes(run), memory)


def run_weight_bytes(run: PlannedRun) -> int:
    """Bytes of what is loaded: the embedding and the layers up to the last tap."""
    return _bytes_of(run.model, run.num_layers, run.compute_dtype)


@cache
def _bytes_of(model: Qwen2Config, layers: int, dtype: np.dtype) -> int:
    """Kept: the shapes of a large model take a second, and each number of rows is asked about."""
    return weight_bytes(weights.abstract_model(model, layers, dtype))


def fit_on(run: PlannedRun, accelerator: Accelerator, note: Callable[[str], None]) -> Fit:
    """The steps that fit; `note` hears what takes time. Raises DoesNotFitError where none does."""
    ladder = row_ladder(run.config.row_length, run.config.max_seq_length)
    mesh = mesh_shape(run, accelerator)
    compiled = accelerator.topology is not None and run.config.compiler and find_spec("libtpu") is not None
    compiled = compiled and run.config.compute_dtype == "bfloat16"  # what compile_step compiles

    def measure(rows: int, length: int) -> ChipMemory:
        memory = estimate_memory(run, accelerator, mesh, rows * length)
        if compiled and (rows == 1 or memory.peak <= _WORTH_ASKING * accelerator.memory_bytes):
            note(f"asking the TPU compiler about {rows} rows of {length:,} tokens a chip")
            return _compiled(run, accelerator, mesh, rows, length)
        if memory.peak > _USABLE * accelerator.memory_bytes:
            raise DoesNotFitError(
                f"{run.config.model_path} on {accelerator.name}, {rows} rows of {length} tokens a chip: would take"
                f" {memory.peak / 1e9:.1f} GB of {accelerator.memory_bytes / 1e9:.0f} GB, by estimate; take shorter"
                " rows, more chips, or fewer layers"
            )
        return memory

    # On CPU the run's own choice is best, however much fits (extract/backend.py).
    recommended = usual_batch_size("cpu") if accelerator.platform == "cpu" else _MOST_ROWS
    return find_fit(measure, run.config.batch_size or recommended, ladder)


def _compiled(run: PlannedRun, accelerator: Accelerator, mesh: MeshShape, rows: int, length: int) -> ChipMemory:
    assert accelerator.topology is not None
    model, form = run.config.model_path, run.form
    step = TpuStep(model, accelerator.topology, rows, length, form.layers, form.sites, str(mesh))
    return ChipMemory(compile_step(step).peak, compiled=True)


def estimate_memory(run: PlannedRun, accelerator: Accelerator, mesh: MeshShape, tokens: int) -> ChipMemory:
    """What a step of so many tokens a chip takes, from shapes alone."""
    model, width = run.model, run.model.hidden_size
    one_layer = _bytes_of(replace(model, vocab_size=1), 1, run.compute_dtype)
    held = run_weight_bytes(run) // mesh.fsdp + (_GATHERED * one_layer if mesh.fsdp > 1 else 0)
    block = gcd(_TOKEN_BLOCK[accelerator.platform], tokens)
    passing = tokens * width * _STREAMS * _FLOAT32 + block * model.intermediate_size * _MLP_VALUES * _FLOAT32
    captured = tokens * run.values_per_token * transfer_dtype(run.compute_dtype, run.form.dtype).itemsize
    # A TPU program hands activations to the host as it goes on; others hold all of them until the
    # step has ended.
    outputs = captured * (_ON_THEIR_WAY if accelerator.platform == "tpu" else _IN_FLIGHT)
    return ChipMemory(round(held + passing + outputs), compiled=False)
