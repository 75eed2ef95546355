# %% [markdown]
# # Activations, for the first time
#
# A model reads a few texts and an ARC task, and you look at what goes through it: tokens, layers,
# norms. Then a small dataset is written to disk and read back. Two minutes on a laptop.
#
# It needs `pip install 'layertap[examples]'`, and fetches a small model with trained weights, once,
# as [real_model.py](real_model.py) says. `layertap.Model("Qwen/Qwen2.5-0.5B")` would take one from
# the Hub. `--quick` takes a tiny model with random weights, whose numbers mean nothing.

# %%
import json
import sys
from pathlib import Path

import numpy as np
from real_model import make_model

import layertap
from layertap.demo.tasks import make_tasks, write_tasks

QUICK = "--quick" in sys.argv  # as the tests run it

# %% [markdown]
# ## A text
#
# Config and tokenizer are read at once, weights when they are first needed.

# %%
model = layertap.Model(make_model(), predictions_per_task=1)  # of an ARC task; otherwise 8, augmented
print(model)

TEXTS = [
    "The capital of France is Paris, and the capital of Italy is Rome.",
    "def area(radius):\n    return 3.14159 * radius ** 2",
    "Once upon a time there was a fox who could not sleep.",
]
samples = list(model.read(TEXTS, progress=False))  # of all layers, as nothing else is asked for
print(samples[0])
print(samples[0].tokens)

# %% [markdown]
# An activation is an array with a row for each token.

# %%
LAST = model.num_layers - 1
print("layer", LAST, samples[0].activation(LAST).shape, samples[0].activation(LAST).dtype)

# %% [markdown]
# ## Layer by layer
#
# `norms` are the lengths of the rows. In a trained model, from some layer on, the first token is
# hundreds of times as long as the others: a "massive activation", a place for attention to rest on.
# It says little about the text, and would rule the training of an autoencoder. So everything here
# that trains leaves it out: `exclude={"first", "sink"}`.

# %%
LAYERS = [0, 1, 2, 3] if QUICK else [0, 4, 8, 10, 11, 12, 16, 20, 24, 28, 29]

print("layer   first token   the others (median of all texts)")
for layer in LAYERS:
    norms = [sample.norms(layer) for sample in samples]
    first = np.median([of_text[0] for of_text in norms])
    others = np.median(np.concatenate([of_text[1:] for of_text in norms]))
    print(f"{layer:5} {first:13,.1f} {others:12,.1f}")

# %% [markdown]
# A few channels hold it all, the same ones in each text.

# %%
MIDDLE = LAYERS[len(LAYERS) // 2]
for sample in samples:
    row = sample.activation(MIDDLE)[0]
    largest = np.argsort(-np.abs(row))[:2]
    share = np.square(row[largest]).sum() / np.square(row).sum()
    channels = " and ".join(map(str, sorted(largest.tolist())))
    print(f"layer {MIDDLE}, {sample.tokens[0]!r}: channels {channels} have {share:.1%} of its square")

# %% [markdown]
# ## An ARC task
#
# A task becomes a prompt with its grids as text. Each token knows what it is: who says it, and
# which cell of which grid. These tasks are made up; one of your own is a dict with `train` and
# `test`.

# %%
LAYER = 2 if QUICK else 12
write_tasks(Path("tasks.jsonl"), make_tasks(2 if QUICK else 6, seed=0))
task = json.loads(Path("tasks.jsonl").read_text().splitlines()[0])
(prompt,) = model.read(task, layers=LAYER, progress=False)
labels = prompt.labels
print(prompt)
print("the test input, as the prompt shows it:")
for row in labels.grids()["test", "input"]:
    print(" ", *row)

norms = prompt.norms(LAYER)
cells = labels.cells > 0
print(
    f"layer {LAYER}: the {cells.sum()} tokens that are cells have a median norm of {np.median(norms[cells]):.1f},",
    end="",
)
print(f" the {(~cells).sum()} others of {np.median(norms[~cells]):.1f}")
for colour in np.unique(labels.colours[cells]):
    of_colour = labels.colours == colour
    print(f"  colour {colour}: {of_colour.sum():3} cells, {np.median(norms[of_colour]):.1f}")

# %% [markdown]
# ## A dataset on disk
#
# `extract` is the command `layertap extract` as a function. Stop it at any moment and call it
# again: it continues. Called once more, it does nothing.

# %%
dataset = layertap.extract(
    dataset_path="tasks.jsonl",
    model_path=make_model(),
    layers_to_extract=[LAYER],
    predictions_per_task=1,
    format="safetensors",
    output_dir="activations",
)
print(dataset)

# %% [markdown]
# It is read back by samples, to look at, or by batches of shuffled tokens, to train from.

# %%
sample = dataset.sample(0)
print(sample)
print("activations:", sample.activation(LAYER).shape, sample.activation(LAYER).dtype)

batches = dataset.batches(512, exclude={"first", "sink"}, center=True, scale="unit_rms")
batch = next(iter(batches))
print(f"{len(batches)} batches an epoch; the first one is {batch.activations.shape} (tokens, taps, width)")
print(f"its mean square is {np.square(batch.activations).mean():.2f}")

# %% [markdown]
# ## Next
#
# [chat_data.py](chat_data.py) reads conversations, [train_saelens.py](train_saelens.py) trains an
# autoencoder. `layertap view activations` makes a page of the run to look at in a browser.
