"""The labels of some samples made once more, and compared with those that are stored.

From the stored labels the grids of an ARC prompt can be read back. With these, the run's own
template, encoder and tokenizer make the prompt again: its token ids and its labels must be the
stored ones, so a label that is wrong anywhere in the prompt is found. That is worth a few
milliseconds a sample, so two samples of each shard are made again, and not all.

It needs the libraries of a run, the tokenizer, in the folder that the run names or in this
machine's cache of the Hub, and a prompt template that comes with Layertap. Where these are not at
hand, or the prompt is no ARC prompt, nothing is compared: `verify` says how many were.
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
    """Makes labels again, where that can be done."""

    _maker: "PromptMaker | None"
    compared: int = field(default=0, init=False)
    """How many samples' labels were made again."""

    def finding(self, columns: Columns) -> str | None:
        """What is wrong with the labels of a sample with these columns; None where nothing is, or
        where it cannot be told.
        """
        if self._maker is None or not NO_LABELS.keys() <= columns.keys() or (columns["example"] == NONE).all():
            return None
        grids = read_grids(columns)
        task = _shown_task(grids) if None not in grids.values() else None
        if task is None:
            return None if _is_cut(columns) else "the labels of its cells make no whole grids"
        self.compared += 1
        made = self._maker.show_task(task, with_answer=task.test[0].output is not None)
        at = columns["positions"]
        if at.size and at[-1] >= len(made["token_ids"]):
            return f"its tokens end at {at[-1]}, but made again the prompt has {len(made['token_ids'])}"
        for name in ("token_ids", *NO_LABELS):
            wrong = np.flatnonzero(columns[name] != made[name][at])
            if wrong.size:
                token = wrong[0]
                again = made[name][at[token]]
                return f"{name} of token {token} is {columns[name][token]}, but {again} when the prompt is made again"
        return None


def relabelling(manifest: Manifest) -> Relabelling:
    """What makes the labels of this run again; one that compares nothing where that cannot be."""
    try:
        from layertap.prompts import PromptMaker, find_tokenizer, load_template, parse_grid_encoder
    except ModuleNotFoundError:  # where outputs are only read (docs/reading.md)
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
    """Whether the prompt ends within its answer, or not all of its tokens were stored."""
    within = columns["example"][-1] == TEST and columns["side"][-1] == _OUTPUT
    return bool(within) or not np.array_equal(columns["positions"], np.arange(len(columns["positions"])))


def _shown_task(grids: dict[tuple[int, int], Grid | None]) -> Task | None:
    """The task as the prompt shows it; None where not all of it is there."""
    numbers = sorted(example for example, side in grids if example >= 0 and side == _INPUT)
    train = [(grids.get((number, _INPUT)), grids.get((number, _OUTPUT))) for number in numbers]
    asked = grids.get((TEST, _INPUT))
    if asked is None or numbers != list(range(len(numbers))) or not train:
        return None
    pairs = [Pair(given, wanted) for given, wanted in train if given is not None and wanted is not None]
    if len(pairs) < len(train):
        return None
    return Task("shown", tuple(pairs), (Pair(asked, grids.get((TEST, _OUTPUT))),))
