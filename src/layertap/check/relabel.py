"""Make the labels of some samples again, and compare them with the stored ones.

The stored labels give back the grids of an ARC prompt. From these, the run's own template, encoder
and tokenizer make the prompt again. Its token ids and labels must equal the stored ones, so this
finds a wrong label anywhere in the prompt. It takes a few milliseconds per sample, so only two
samples of each shard are checked.

It needs the libraries of a run, the tokenizer (in the folder that the run names or in this
machine's Hub cache) and a prompt template that comes with Layertap. If one is missing, or the
prompt is not an ARC prompt, nothing is compared. `verify` reports how many samples were.
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from layertap.core.cells import read_grids
from layertap.core.columns import NO_LABELS, NONE, SIDES, TEST, Columns
from layertap.core.records import Grid, Pair, Task
from layertap.errors import PromptError, UsageError
from layertap.shards.manifest import Manifest

if TYPE_CHECKING:
    from layertap.prompts import PromptMaker

_INPUT, _OUTPUT = SIDES.index("input"), SIDES.index("output")


@dataclass
class Relabelling:
    """Makes labels again, if that is possible."""

    _maker: "PromptMaker | None"
    compared: int = field(default=0, init=False)
    """How many samples were compared."""

    def finding(self, columns: Columns) -> str | None:
        """Return what is wrong with a sample's labels; None if nothing is, or if it cannot be
        checked.
        """
        if self._maker is None or not NO_LABELS.keys() <= columns.keys() or (columns["example"] == NONE).all():
            return None
        grids = read_grids(columns)
        task = _shown_task(grids) if None not in grids.values() else None
        if task is None:
            return None if _is_cut(columns) else "the labels of its cells do not form whole grids"
        self.compared += 1
        made = self._maker.show_task(task, with_answer=task.test[0].output is not None)
        at = columns["positions"]
        if at.size and at[-1] >= len(made["token_ids"]):
            return f"its tokens end at {at[-1]}, but the prompt made again has {len(made['token_ids'])} tokens"
        for name in ("token_ids", *NO_LABELS):
            wrong = np.flatnonzero(columns[name] != made[name][at])
            if wrong.size:
                token = wrong[0]
                again = made[name][at[token]]
                return f"{name} of token {token} is {columns[name][token]}, but {again} when the prompt is made again"
        return None


def open_relabelling(manifest: Manifest) -> Relabelling:
    """Prepare to make the labels of this run again; if impossible, nothing will be compared."""
    try:
        from layertap.prompts import PromptMaker, find_tokenizer, load_template, parse_grid_encoder
    except ModuleNotFoundError:  # an installation that only reads outputs (docs/reading.md)
        return Relabelling(None)
    prompts = manifest.identity.get("prompts", {})
    try:
        tokenizer = find_tokenizer(manifest.model_path)
        template = load_template(str(prompts.get("prompt_version")))
        encoder = parse_grid_encoder(str(prompts.get("grid_encoder")))
    except (UsageError, PromptError):
        return Relabelling(None)
    if (tokenizer.digest, template.digest) != (prompts.get("tokenizer"), prompts.get("prompt_template")):
        return Relabelling(None)
    return Relabelling(PromptMaker(tokenizer, template, encoder, 1, include_answer=False, seed=0))


def _is_cut(columns: Columns) -> bool:
    """Return whether the prompt ends within its answer, or some tokens were not stored."""
    within = columns["example"][-1] == TEST and columns["side"][-1] == _OUTPUT
    return bool(within) or not np.array_equal(columns["positions"], np.arange(len(columns["positions"])))


def _shown_task(grids: dict[tuple[int, int], Grid | None]) -> Task | None:
    """Return the task as the prompt shows it; None if parts are missing."""
    numbers = sorted(example for example, side in grids if example >= 0 and side == _INPUT)
    train = [(grids.get((number, _INPUT)), grids.get((number, _OUTPUT))) for number in numbers]
    asked = grids.get((TEST, _INPUT))
    if asked is None or numbers != list(range(len(numbers))) or not train:
        return None
    pairs = [Pair(given, wanted) for given, wanted in train if given is not None and wanted is not None]
    if len(pairs) < len(train):
        return None
    return Task("shown", tuple(pairs), (Pair(asked, grids.get((TEST, _OUTPUT))),))
