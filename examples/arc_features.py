# %% [markdown]
# # What fires on which cells
#
# Activations of the small model of `arc_model.py`, a sparse autoencoder on them, and what its
# features mean: Layertap stores with each token which cell of which grid it is, so a feature can be
# held against colours, places and neighbours. The same is done to the model before it was trained.
# What is found in both is a matter of the tokens, and not of what the model has learnt.
#
# It needs `pip install 'layertap[examples]'`, and some minutes for the model where there is none.

# %%
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import arc_model
import jax
import matplotlib
import numpy as np
from arc_model import GRID_ENCODER, RULES, SIDE, TEMPLATE, TRAINED, UNTRAINED, make_puzzles
from train_jax import TOP_K, State, encode, init_state, save_sae, train

import layertap
from layertap.cli import main as layertap_command
from layertap.demo.tasks import write_tasks
from layertap.reader import Normalisation, fold

matplotlib.use("agg")
from matplotlib import pyplot as plt
from matplotlib.colors import ListedColormap

QUICK = "--quick" in sys.argv  # as the tests run it

LAYER = 2
PUZZLES, FEATURES, STEPS, BATCH = (60, 64, 30, 256) if QUICK else (2000, 512, 1000, 1024)
SHOWN, DRAWN = 24, 8
SURE = 0.5  # phi from which on a feature counts as being about something
LEAST = 20  # cells that a feature has to fire on, for a share of them to mean something
PICTURE, PAGE = Path("arc_features.png"), Path("arc_features.html")

# %% [markdown]
# ## Activations
#
# Puzzles that the model was not trained on, with their answers. Of the tokens, the cells are kept.


# %%
def extract(model: Path) -> layertap.ActivationDataset:
    """Extract the activations of a model at all cells."""
    return layertap.extract(
        dataset_path="puzzles.jsonl",
        model_path=model,
        prompt_template=TEMPLATE,
        grid_encoder=GRID_ENCODER,
        include_answer=True,
        predictions_per_task=1,
        layers_to_extract=[LAYER],
        compute_dtype="float32",
        keep_tokens=["cells"],
        format="safetensors",
        storage_dtype="float32",
        row_length=1024,
        output_dir=f"activations_{model}",
        checkpoint_dir=f"checkpoints_{model}",
    )


def train_sae(dataset: layertap.ActivationDataset) -> tuple[State, Normalisation]:
    """Train the autoencoder of `train_jax.py`, and return how its activations were normalised."""
    batches = dataset.batches(BATCH, as_="jax", drop_last=True, center=True, scale="unit_rms")
    state = train(batches, init_state(0, dataset.hidden_size, FEATURES), STEPS)
    return state, batches.normalisation


# %% [markdown]
# ## What a cell is
#
# All of it follows from the labels: the colour, row, column and grid of a token, and the grid that
# all of them make together. The model says the next token at each, so that counts as well.


# %%
class Cells(NamedTuple):
    """All cells of all puzzles, in sequence."""

    fired: np.ndarray
    """float32 [cells, features]: how strongly each feature fires."""
    properties: dict[str, np.ndarray]
    """bool [cells], by what they say."""
    number: np.ndarray
    """int [cells]: which puzzle it is of."""
    puzzles: list["Puzzle"]


KINDS = {
    "its colour": [f"colour {colour}" for colour in range(10)],
    "the next cell's colour": [f"before colour {colour}" for colour in range(10)],
    "place": ["row", "column", "corner", "edge", "inside", "last cell"],
    "which grid": ["input", "output", "first pair", "question", "answer"],
    "neighbours": ["in an object", "alone", "background"],
    "what the rule does": ["changed", "kept", "the rule's colour", "before the rule's"],
    "which rule it is": ["puzzle"],
}


class Puzzle(NamedTuple):
    """The content of a prompt, as it shows it."""

    rule: str
    grids: dict[tuple[int | str, str], np.ndarray]
    """The grids by pair and side, in the order of the prompt."""

    @property
    def colour(self) -> int:
        """The colour that the rule introduces."""
        given, answer = self.grids[0, "input"], self.grids[0, "output"]
        return int(answer[given != answer][0])


def describe(puzzle: Puzzle, pair: int | str, side: str) -> Iterator[tuple[str, np.ndarray]]:
    """Return what is true of each cell of a grid: bool [rows, columns].

    Colour 0 counts as background, which it is in nine prompts of ten.
    """
    grid, question, new = puzzle.grids[pair, side], puzzle.grids[pair, "input"], puzzle.colour
    row, column = np.indices(grid.shape)
    bottom, right = row == row.max(), column == column.max()
    framed = np.pad(grid, 1, constant_values=-1)
    beside = np.stack([framed[:-2, 1:-1], framed[2:, 1:-1], framed[1:-1, :-2], framed[1:-1, 2:]])
    alike = (beside == grid).any(axis=0)
    edges = (row == 0) | bottom, (column == 0) | right
    yield from ((f"colour {colour}", grid == colour) for colour in range(10))
    yield from ((f"before colour {colour}", framed[1:-1, 2:] == colour) for colour in range(10))
    yield from ((f"row {number}", row == number) for number in range(SIDE[1]))
    yield from ((f"column {number}", column == number) for number in range(SIDE[1]))
    yield "corner", edges[0] & edges[1]
    yield "edge of the grid", edges[0] | edges[1]
    yield "inside the grid", ~(edges[0] | edges[1])
    yield "last cell of the grid", bottom & right
    grids = {
        "input": side == "input",
        "output": side == "output",
        "first pair": pair == 0,
        "question": (pair, side) == ("test", "input"),
        "answer": (pair, side) == ("test", "output"),
    }
    yield from ((name, np.full(grid.shape, value)) for name, value in grids.items())
    yield "in an object of several cells", (grid > 0) & alike
    yield "alone in its colour", (grid > 0) & ~alike
    yield "background beside a colour", (grid == 0) & (beside > 0).any(axis=0)
    yield "background beside background", (grid == 0) & alike
    yield "changed by the rule", (side == "output") & (grid != question)
    yield "kept by the rule", (side == "output") & (grid == question)
    yield "the rule's colour", grid == new
    yield "before the rule's colour", framed[1:-1, 2:] == new
    yield from ((f"puzzle: {rule.__name__}", np.full(grid.shape, rule.__name__ == puzzle.rule)) for rule in RULES)
    yield from ((f"puzzle: rule's colour {colour}", np.full(grid.shape, colour == new)) for colour in range(10))


def look_at(dataset: layertap.ActivationDataset, state: State, normalisation: Normalisation) -> Cells:
    """Find what fires where, puzzle by puzzle."""
    samples = sorted(dataset, key=lambda sample: sample.sample_idx)
    normal = normalisation[LAYER, "residual"]
    fired = [np.asarray(_fired(state["sae"], normal.apply(sample.activation(LAYER)))) for sample in samples]
    puzzles = [
        Puzzle(sample.task_id.split("_")[0], {place: np.array(grid) for place, grid in sample.labels.grids().items()})
        for sample in samples
    ]
    described = [dict(describe(puzzle, *place)) for puzzle in puzzles for place in puzzle.grids]
    properties = {name: np.concatenate([one[name].ravel() for one in described]) for name in described[0]}
    number = np.repeat(np.arange(len(samples)), [len(one) for one in fired])
    return Cells(np.concatenate(fired), properties, number, puzzles)


_fired = jax.jit(encode)

# %% [markdown]
# ## Which property a feature has
#
# On every other puzzle each feature is given the property that it agrees with best (the correlation
# of two yes-or-no answers, phi). What is printed is counted on the rest, which nobody chose by.


# %%
class Meaning(NamedTuple):
    """What a feature fires on, counted on puzzles that did not choose it."""

    feature: int
    name: str
    both: int
    """Cells that it fires on and that have the property."""
    fires: int
    """Cells that it fires on."""
    having: int
    """Cells that have the property."""
    cells: int

    @property
    def precision(self) -> float:
        """The share of the cells it fires on that have the property."""
        return self.both / max(self.fires, 1)

    @property
    def chance(self) -> float:
        """The share of all cells that have the property."""
        return self.having / self.cells

    @property
    def lift(self) -> float:
        """How many times more often than by chance."""
        return self.precision / max(self.chance, 1e-9)

    @property
    def recall(self) -> float:
        """The share of the cells with the property that it fires on."""
        return self.both / max(self.having, 1)

    @property
    def phi(self) -> float:
        """1 where it fires on exactly these cells, 0 where it has nothing to do with them."""
        return float(phi(*(np.float64(n) for n in (self.both, self.fires, self.having, self.cells))))


def phi(both: Any, fires: Any, having: Any, cells: Any) -> Any:  # noqa: ANN401 - numbers or arrays
    """The correlation of firing and having, from counts."""
    spread = fires * (cells - fires) * having * (cells - having)
    return (both * cells - fires * having) / np.sqrt(np.maximum(spread, 1))


def find_meanings(cells: Cells) -> list[Meaning]:
    """Find the best property of each feature that fires on enough cells, the surest first."""
    names = list(cells.properties)
    has = np.stack([cells.properties[name] for name in names], axis=1).astype(np.float64)
    fires = (cells.fired > 0).astype(np.float64)
    choosing = cells.number % 2 == 0
    best = np.argmax(phi(*_counts(fires[choosing], has[choosing])), axis=1)
    both, fired, having, total = _counts(fires[~choosing], has[~choosing])
    found = [
        Meaning(feature, names[own], int(both[feature, own]), int(fired[feature, 0]), int(having[0, own]), total)
        for feature, own in enumerate(best)
    ]
    return sorted((one for one in found if one.fires >= LEAST), key=lambda one: -one.phi)


def _counts(fires: np.ndarray, has: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    return fires.T @ has, fires.sum(axis=0)[:, None], has.sum(axis=0)[None], len(has)


def surest_of_each(meanings: list[Meaning]) -> list[Meaning]:
    """Find for each property the feature that agrees with it best, the surest first."""
    found: dict[str, Meaning] = {}
    for one in meanings:
        found.setdefault(one.name, one)
    return list(found.values())


def print_meanings(meanings: list[Meaning]) -> None:
    """Print the surest feature of each property, as a table."""
    print("\n| feature | fires on | of which | chance | lift | of all such cells | phi |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for one in surest_of_each(meanings)[:SHOWN]:
        row = (
            one.feature,
            f"{one.fires:,}",
            f"{one.both:,} {one.name} ({one.precision:.0%})",
            f"{one.chance:.1%}",
            f"{one.lift:.1f}",
            f"{one.recall:.0%} of {one.having:,}",
            f"{one.phi:.2f}",
        )
        print("|", " | ".join(map(str, row)), "|")
    print()


def print_kinds(found: dict[str, list[Meaning]]) -> None:
    """Print how many features of each model are about what, and how sure the surest is."""
    print("\n| about | " + " | ".join(f"{model}: features | phi of the surest" for model in found) + " |")
    print("| --- " * (1 + 2 * len(found)) + "|")
    for kind, names in (*KINDS.items(), ("any of these", [""])):
        cells = []
        for meanings in found.values():
            own = [one for one in meanings if one.name.startswith(tuple(names))]
            cells += [str(sum(one.phi >= SURE for one in own)), f"{max((one.phi for one in own), default=0):.2f}"]
        print(f"| {kind} | " + " | ".join(cells) + " |")
    print()


# %% [markdown]
# ## A picture
#
# For each feature the puzzle on which it fires most strongly: all grids of the prompt in ARC's
# colours, and on each cell a dot, the larger the stronger the feature fires.

# %%
ARC_COLOURS = [
    "#000000",
    "#0074D9",
    "#FF4136",
    "#2ECC40",
    "#FFDC00",
    "#AAAAAA",
    "#F012BE",
    "#FF851B",
    "#7FDBFF",
    "#870C25",
]


def draw(cells: Cells, meanings: list[Meaning]) -> None:
    """Write the picture of the surest features, each of another property."""
    columns = len(cells.puzzles[0].grids)
    figure, axes = plt.subplots(len(meanings), columns, figsize=(1.15 * columns, 1.4 * len(meanings)), squeeze=False)
    for row, meaning in zip(axes, meanings, strict=True):
        strength = cells.fired[:, meaning.feature]
        number = int(cells.number[strength.argmax()])
        dots = iter(strength[cells.number == number] / strength.max())
        for axis, ((pair, side), grid) in zip(row, cells.puzzles[number].grids.items(), strict=True):
            axis.imshow(grid, cmap=ListedColormap(ARC_COLOURS), vmin=0, vmax=9)
            for (y, x), _ in np.ndenumerate(grid):
                axis.scatter(x, y, s=160 * next(dots), c="white", edgecolors="black", linewidths=0.8)
            axis.set(xticks=[], yticks=[])
            if axis.get_subplotspec().is_first_row():
                axis.set_title(f"{pair if pair == 'test' else f'pair {pair + 1}'} {side}", fontsize=7)
        row[0].set_ylabel(
            f"{meaning.feature}\n{meaning.name}".replace(" by ", "\nby ").replace(" of ", "\nof "), fontsize=6
        )
    figure.tight_layout(pad=0.4)
    figure.savefig(PICTURE, dpi=100)
    plt.close(figure)


# %% [markdown]
# ## A page
#
# The autoencoder is folded, so that it takes activations as the model has them, and saved as
# SAELens would save it. `layertap view` reads that, counts all of its features on all cells, and
# writes a page on which each can be looked at.


# %%
def save_folded(folder: Path, state: State, normalisation: Normalisation) -> None:
    """Write the autoencoder in the form that takes the model's own activations."""
    folded = fold(**state["sae"], inputs=normalisation[LAYER, "residual"])._asdict()
    save_sae(folder, folded, TOP_K, f"blocks.{LAYER}.hook_resid_post")


def write_page(model: Path, sae: Path) -> None:
    """Show what fires on which cells, on a page of `layertap view`."""
    flags = ["--sae", str(sae), "--out", str(PAGE), "--max_samples", "20"]
    if failed := layertap_command(["view", f"activations_{model}", *flags]):
        raise SystemExit(failed)


# %% [markdown]
# ## All of it


# %%
def main() -> None:
    """Make the model if it does not exist, and look at it before and after its training."""
    if not TRAINED.exists():
        arc_model.main()
    write_tasks(Path("puzzles.jsonl"), make_puzzles(PUZZLES, seed=3))
    found = {}
    for model in (UNTRAINED, TRAINED):
        dataset = extract(model)
        print(f"{model}: {dataset.tokens:,} cells, layer {LAYER}, width {dataset.hidden_size}")
        state, normalisation = train_sae(dataset)
        cells = look_at(dataset, state, normalisation)
        meanings = found[str(model)] = find_meanings(cells)
        print(f"{len(meanings)} of {FEATURES} features fire on {LEAST} cells or more of those that are counted")
        print_meanings(meanings)
    print_kinds(found)
    draw(cells, surest_of_each(meanings)[:DRAWN])
    print(f"{PICTURE}: where the surest features of the trained model fire")
    save_folded(Path("sae_trained"), state, normalisation)
    write_page(TRAINED, Path("sae_trained"))


if __name__ == "__main__":
    main()

# %% [markdown]
# ## What to think of it
#
# Features with a clean meaning are not yet a success: in random weights a cell is its own token and
# little else, so features of colours are cleaner before the training than after it. Look at the
# untrained model before you say that a feature was learnt.
# [What the examples gave](../docs/examples.md) goes through the tables and the picture.
