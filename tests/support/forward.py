"""Layertap's own forward pass in tests, for one sequence alone in its row."""

from collections.abc import Sequence
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from layertap.core.taps import SITES, Site, Tap
from layertap.dataset import read_records
from layertap.model import weights
from layertap.model.checkpoint import open_checkpoint
from layertap.model.decoder import ForwardPlan
from layertap.pipeline.packing import Placement, Step, batch_arrays
from layertap.pipeline.step import StepProgram, resolve_taps
from layertap.prompts import PromptMaker, load_template, load_tokenizer, parse_grid_encoder

_ROW_MULTIPLE = 256


def activations(
    folder: Path,
    token_ids: np.ndarray,
    plan: ForwardPlan,
    dtype: str = "float32",
    *,
    layers: int | None = None,
    adapters: Sequence[Path] = (),
    sites: Sequence[Site] = SITES,
) -> dict[Tap, np.ndarray]:
    """[tokens, width] at these sites of the first `layers` layers, all of them by default."""
    checkpoint = open_checkpoint(str(folder), adapters=[str(adapter) for adapter in adapters])
    layers = layers or checkpoint.config.num_hidden_layers
    model = weights.load(checkpoint, layers, jnp.dtype(dtype))
    program = StepProgram(model, resolve_taps((), sites, layers), plan)
    length = -(-len(token_ids) // _ROW_MULTIPLE) * _ROW_MULTIPLE
    step = Step(1, length, (Placement(0, 0, 0, len(token_ids)),))
    arrays = program.harvest(program.dispatch(model, *batch_arrays(step, [token_ids])))
    return {tap: value[0][: len(token_ids)] for tap, value in arrays.items()}


def arc_prompts(tokenizer: Path, shared_data: Path, lengths: dict[str, int]) -> dict[str, np.ndarray]:
    """The token ids of real ARC tasks, each as long as `lengths` says."""
    encoder = parse_grid_encoder("GridShapeEncoder(RowNumberEncoder(MinimalGridEncoder()))")
    template = load_template("output-from-examples-v0", None)
    maker = PromptMaker(load_tokenizer(tokenizer), template, encoder, 1, include_answer=False, seed=42)
    records = read_records(str(shared_data / "arc-agi-1" / "training.jsonl"))
    tasks = [task for task in records if task.task_id in lengths]
    made = {sample.task_id: np.asarray(sample.token_ids, np.int32) for sample in maker.make(list(enumerate(tasks)))}
    assert {task: len(ids) for task, ids in made.items()} == lengths
    return made
