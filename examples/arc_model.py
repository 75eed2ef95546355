# %% [markdown]
# # A small Qwen2 that solves small puzzles
#
# A model with the shape of Qwen2 is trained on puzzles in the manner of ARC: two examples of a
# rule, then a question. It is written as an ordinary checkpoint, beside the same model before it
# was trained. `arc_features.py` looks into both.
#
# The prompts come from Layertap's own `PromptMaker`, so that training and extraction see the same
# tokens. The forward pass is a plain one, on arrays that have the names of Hugging Face: writing
# them is all that a checkpoint takes, and Layertap reading them is a second opinion.

# %%
import dataclasses
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from safetensors.numpy import save_file

from layertap.core.columns import SIDES, TEST
from layertap.core.records import Grid, Pair, Task
from layertap.demo.checkpoint import WeightTensor, config_json, weight_tensors
from layertap.demo.scenes import Cells, Draw, applied, draw_colours, draw_size, speckled
from layertap.demo.tokenizer import demo_texts, write_tokenizer
from layertap.model.config import published_config
from layertap.prompts import load_tokenizer
from layertap.prompts.grids import parse_grid_encoder
from layertap.prompts.samples import PromptMaker
from layertap.prompts.templates import load_template

QUICK = "--quick" in sys.argv  # as the tests run it

UNTRAINED, TRAINED, TEMPLATE = Path("untrained"), Path("trained"), Path("template")
GRID_ENCODER = "MinimalGridEncoder()"
TRAIN_PAIRS = 2
SIDE = (3, 3)  # the least and the most cells of a side
BATCH, STEPS, HELD_OUT = (4, 12, 20) if QUICK else (8, 1500, 300)
RATE = 2e-3

# %% [markdown]
# ## The puzzles
#
# Three rules, each drawn as the families of Layertap's demo are, on grids that are small enough for
# short prompts. The colour that belongs to a rule is drawn once a puzzle.


# %%
def frame(task: Random) -> Draw:
    """The outermost cells get one colour."""
    (colour,) = draw_colours(task, 1)
    return applied(lambda cells: np.pad(cells[1:-1, 1:-1], 1, constant_values=colour), scene(task))


def fill(task: Random) -> Draw:
    """The background gets one colour."""
    (colour,) = draw_colours(task, 1)
    return applied(lambda cells: np.where(cells == 0, colour, cells), scene(task))


def repaint(task: Random) -> Draw:
    """Everything but the background gets one colour."""
    (colour,) = draw_colours(task, 1)
    return applied(lambda cells: np.where(cells > 0, colour, 0), scene(task))


RULES = (frame, fill, repaint)


def scene(task: Random) -> Callable[[Random], Cells]:
    """Return a function that makes speckled pictures, all of one size for all pairs of a task."""
    rows, columns = draw_size(task, *SIDE)
    return lambda rng: speckled(rng, low=SIDE[1], high=SIDE[1])[:rows, :columns]


def make_puzzles(count: int, seed: int) -> list[Task]:
    """Make `count` puzzles, one rule after another. Ids are like `frame_7_00012`."""
    return [make_puzzle(index, seed) for index in range(count)]


def make_puzzle(index: int, seed: int) -> Task:
    """Make a puzzle with different inputs, each of which the rule changes."""
    rule = RULES[index % len(RULES)]
    task_id = f"{rule.__name__}_{seed}_{index:05}"
    rng = Random(task_id)
    draw, pairs = rule(rng), dict[Grid, Pair]()
    while len(pairs) <= TRAIN_PAIRS:
        given, answer = (tuple(map(tuple, cells.tolist())) for cells in draw(rng))
        if given != answer:
            pairs[given] = Pair(given, answer)
    *train, test = pairs.values()
    return Task(task_id, tuple(train), (test,))


# %% [markdown]
# ## The prompts
#
# A short template keeps sequences short. Columns of a sample say which token is a cell of an
# output: those, and the token behind each, are what the model learns to say.


# %%
class Prompts(NamedTuple):
    """Prompts with their answers, one in each row, padded at the end."""

    token_ids: np.ndarray
    """int32 [prompts, tokens]"""
    learnt: np.ndarray
    """float32 [prompts, tokens]: 1 where the token is an output's cell, or follows one."""
    answer: np.ndarray
    """bool [prompts, tokens]: the same, of the answer alone."""
    cell: np.ndarray
    """bool [prompts, tokens]: the cells of the answer."""


def write_template(folder: Path) -> None:
    """Write a prompt template of a few tokens."""
    folder.mkdir(exist_ok=True)
    (folder / "system.j2").write_text("")
    examples = "{% for one in examples %}I\n{{ one.input }}\nO\n{{ one.output }}\n{% endfor %}"
    (folder / "user.j2").write_text(examples + "I\n{{ test_input }}")
    (folder / "assistant.j2").write_text("O\n{{ answer }}")


def make_prompts(puzzles: list[Task], model: Path) -> Prompts:
    """Make the prompts of `layertap extract --include_answer --predictions_per_task 1`."""
    maker = PromptMaker(
        load_tokenizer(model),
        load_template(folder=str(TEMPLATE)),
        parse_grid_encoder(GRID_ENCODER),
        predictions_per_task=1,
        include_answer=True,
        seed=42,
    )
    samples = maker.make(list(enumerate(puzzles)))
    prompts = Prompts(*(np.zeros((len(samples), max(sample.tokens for sample in samples)), dtype) for dtype in "if??"))
    for row, sample in enumerate(samples):
        output = sample.columns["side"] == SIDES.index("output")
        answer = output & (sample.columns["example"] == TEST)
        cell = answer & (sample.columns["cells"] > 0)
        for array, values in zip(
            prompts, (sample.token_ids, and_behind(output), and_behind(answer), cell), strict=True
        ):
            array[row, : sample.tokens] = values
    return prompts


def and_behind(tokens: np.ndarray) -> np.ndarray:
    """Mark these tokens, and those that follow one of them."""
    return tokens | np.append(False, tokens[:-1])


# %% [markdown]
# ## The model
#
# What `Qwen2ForCausalLM` computes, as a function of arrays that are named as in its checkpoints.

# %%
Weights = dict[str, jax.Array]

CONFIG = dataclasses.replace(
    published_config("0.5b"),
    hidden_size=256,
    intermediate_size=384,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=64,
    vocab_size=300,
    rope_theta=500.0,  # prompts are short
)


def init_weights(seed: int) -> Weights:
    """Draw random matrices, as transformers initialises them; norms are one and biases zero."""
    rng = np.random.default_rng(seed)

    def drawn(tensor: WeightTensor) -> np.ndarray:
        if tensor.name.endswith("bias"):
            return np.zeros(tensor.shape)
        return np.ones(tensor.shape) if len(tensor.shape) == 1 else 0.02 * rng.standard_normal(tensor.shape)

    return {tensor.name: jnp.asarray(drawn(tensor), jnp.float32) for tensor in weight_tensors(CONFIG)}


def logits(weights: Weights, token_ids: jax.Array) -> jax.Array:
    """Return [prompts, tokens, vocabulary]: what each token predicts about the next one."""

    def norm(x: jax.Array, name: str) -> jax.Array:
        mean_square = jnp.mean(x * x, axis=-1, keepdims=True)
        return x * jax.lax.rsqrt(mean_square + CONFIG.rms_norm_eps) * weights[f"{name}.weight"]

    def project(x: jax.Array, name: str) -> jax.Array:
        bias = weights.get(f"{name}.bias", 0.0)
        return x @ weights[f"{name}.weight"].T + bias

    def heads(x: jax.Array) -> jax.Array:
        return x.reshape(*token_ids.shape, -1, CONFIG.head_dim)

    def attend(x: jax.Array, name: str) -> jax.Array:
        query, key, value = (heads(project(x, f"{name}.{part}_proj")) for part in "qkv")
        query, key = rotated(query), rotated(key)
        mixed = jax.nn.dot_product_attention(query, key, value, is_causal=True)
        return project(mixed.reshape(x.shape), f"{name}.o_proj")

    def transform(x: jax.Array, name: str) -> jax.Array:
        gated = jax.nn.silu(project(x, f"{name}.gate_proj")) * project(x, f"{name}.up_proj")
        return project(gated, f"{name}.down_proj")

    x = weights["model.embed_tokens.weight"][token_ids]
    for layer in (f"model.layers.{index}" for index in range(CONFIG.num_hidden_layers)):
        x = x + attend(norm(x, f"{layer}.input_layernorm"), f"{layer}.self_attn")
        x = x + transform(norm(x, f"{layer}.post_attention_layernorm"), f"{layer}.mlp")
    return norm(x, "model.norm") @ weights["model.embed_tokens.weight"].T


def rotated(x: jax.Array) -> jax.Array:
    """Rotary positions: `x` [prompts, tokens, heads, head_dim], counted from the prompt's begin."""
    half = CONFIG.head_dim // 2
    angles = np.arange(x.shape[1])[:, None] * CONFIG.rope_theta ** (-np.arange(half) / half)
    cosine, sine = (part(angles).astype(np.float32)[None, :, None] for part in (np.cos, np.sin))
    first, second = x[..., :half], x[..., half:]
    return jnp.concatenate([first * cosine - second * sine, second * cosine + first * sine], axis=-1)


def save_model(folder: Path, weights: Weights) -> None:
    """Write a checkpoint in the layout of Hugging Face, with the demo's tokenizer."""
    folder.mkdir(exist_ok=True)
    write_tokenizer(folder, demo_texts(), CONFIG.vocab_size)
    save_file({name: np.asarray(array) for name, array in weights.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config_json(CONFIG, "float32"), indent=2))


# %% [markdown]
# ## Training, and how well it does
#
# A puzzle is solved where the model's first choice is right for every token of the answer, its line
# breaks and its end too: so it would write exactly this answer. Cells are counted given the true
# tokens before them. Two who have not learnt anything stand beside it: one repeats the question,
# one always says the most frequent colour.


# %%
def loss(weights: Weights, token_ids: jax.Array, learnt: jax.Array) -> jax.Array:
    """Return the mean cross entropy of the tokens to learn."""
    each = optax.softmax_cross_entropy_with_integer_labels(logits(weights, token_ids[:, :-1]), token_ids[:, 1:])
    return jnp.sum(each * learnt[:, 1:]) / jnp.sum(learnt[:, 1:])


def train(weights: Weights, prompts: Prompts) -> Weights:
    """Train one epoch, and print the progress."""
    steps = len(prompts.token_ids) // BATCH
    rate = optax.warmup_cosine_decay_schedule(0, RATE, min(steps // 5 + 1, 50), steps, RATE / 20)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(rate, b2=0.98, weight_decay=0.01))

    @jax.jit
    def step(weights: Weights, memory: optax.OptState, token_ids: jax.Array, learnt: jax.Array):  # noqa: ANN202
        lost, gradient = jax.value_and_grad(loss)(weights, token_ids, learnt)
        updates, memory = optimizer.update(gradient, memory, weights)
        return optax.apply_updates(weights, updates), memory, lost

    memory, lost = optimizer.init(weights), []
    begun, used = time.perf_counter(), time.process_time()
    for number, batch in enumerate(batches_of(prompts, BATCH), 1):
        weights, memory, now = step(weights, memory, batch.token_ids, batch.learnt)
        lost.append(now)
        if number % max(steps // 10, 1) == 0:
            recent = float(np.mean(lost[-max(steps // 10, 1) :]))
            spent = f"{time.perf_counter() - begun:.0f} s, {time.process_time() - used:.0f} s of processor time"
            print(f"step {number} of {steps}: loss {recent:.3f}, {spent}", flush=True)
    return weights


def batches_of(prompts: Prompts, size: int) -> Iterator[Prompts]:
    """Yield one batch after another, without what does not fill one."""
    for begin in range(0, len(prompts.token_ids) - size + 1, size):
        yield Prompts(*(array[begin : begin + size] for array in prompts))


def judge(weights: Weights, puzzles: list[Task], prompts: Prompts) -> None:
    """Print the share of the puzzles and cells that is right, rule by rule."""
    first_choice = jax.jit(lambda weights, token_ids: logits(weights, token_ids).argmax(-1))
    guessed = np.concatenate(
        [first_choice(weights, batch.token_ids[:, :-1]) for batch in batches_of(prompts, HELD_OUT // 10)]
    )
    right = guessed == prompts.token_ids[:, 1:]
    solved = (right | ~prompts.answer[:, 1:]).all(axis=1)
    print("\n| rule | puzzles | solved | cells right | question repeated | most frequent colour |")
    print("| --- | --- | --- | --- | --- | --- |")
    for rule in (*(rule.__name__ for rule in RULES), "all"):
        chosen = np.array([rule == "all" or puzzle.task_id.startswith(f"{rule}_") for puzzle in puzzles])
        cells = prompts.cell[chosen, 1:]
        repeated = np.concatenate([same_cells(puzzle) for puzzle, one in zip(puzzles, chosen, strict=True) if one])
        colours = np.bincount(prompts.token_ids[chosen][prompts.cell[chosen]])
        shares = solved[chosen].mean(), right[chosen][cells].mean(), repeated.mean(), colours.max() / colours.sum()
        print(f"| {rule} | {chosen.sum()} | " + " | ".join(f"{share:.1%}" for share in shares) + " |")
    print()


def same_cells(puzzle: Task) -> np.ndarray:
    """Return for each cell of the answer whether the question has the same colour there."""
    return (np.array(puzzle.test[0].input) == np.array(puzzle.test[0].output)).ravel()


# %% [markdown]
# ## All of it


# %%
def main() -> None:
    """Train, judge on puzzles of another seed, and write both checkpoints."""
    weights = init_weights(0)
    save_model(UNTRAINED, weights)
    write_template(TEMPLATE)
    print(f"{sum(array.size for array in weights.values()):,} parameters, {BATCH * STEPS:,} puzzles")
    weights = train(weights, make_prompts(make_puzzles(BATCH * STEPS, seed=1), UNTRAINED))
    save_model(TRAINED, weights)
    held_out = make_puzzles(HELD_OUT, seed=2)
    judge(weights, held_out, make_prompts(held_out, UNTRAINED))


if __name__ == "__main__":
    main()
