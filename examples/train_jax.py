# %% [markdown]
# # A sparse autoencoder in plain JAX
#
# A TopK autoencoder is trained on activations while the model runs: nothing is written but the
# autoencoder's own checkpoint. Kill this script where you like and start it again: it continues
# with the batch that would have come next.
#
# It needs `pip install 'layertap[examples]'`. Without a download it makes a tiny model with random
# weights, so its features mean nothing; put your own model and dataset below. With
# `--run layertap-demo/activations` it trains on a run that is stored, and runs no model.

# %%
import itertools
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import serialization
from safetensors.numpy import save_file

import layertap
from layertap.demo.checkpoint import write_checkpoint
from layertap.demo.tasks import make_tasks, write_tasks
from layertap.reader import fold

QUICK = "--quick" in sys.argv  # as the tests run it
RUN = sys.argv[sys.argv.index("--run") + 1] if "--run" in sys.argv else None  # a stored run

MODEL, TASKS = "model", "tasks.jsonl"  # such as "Qwen/Qwen2.5-0.5B", and your own dataset
LAYER, SITE = 2, "residual"
FEATURES, TOP_K = (128, 8) if QUICK else (512, 8)
BATCH, STEPS = (512, 60) if QUICK else (1024, 600)
SAVE_EVERY = 20 if QUICK else 100
DEAD_AFTER = 50 * BATCH  # tokens in which a feature did not fire
CHECKPOINT, SAE = Path("sae.msgpack"), Path("sae")

# %% [markdown]
# ## The autoencoder
#
# Weights are named and shaped as in SAELens: `W_enc` is [width, features], `W_dec` [features,
# width]. Each direction of the decoder has length 1, and the encoder begins as its transpose.

# %%
Sae = dict[str, jax.Array]
State = dict[str, Any]

optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-3))


def init_state(seed: int, width: int, features: int) -> State:
    """The autoencoder, its optimizer, and for each feature how many tokens ago it last fired."""
    directions = unit_rows(jax.random.normal(jax.random.key(seed), (features, width)))
    sae = {
        "W_enc": directions.T,
        "b_enc": jnp.zeros(features),
        "W_dec": directions,
        "b_dec": jnp.zeros(width),
    }
    return {"sae": sae, "optimizer": optimizer.init(sae), "idle": jnp.zeros(features, jnp.int32), "step": 0}


def unit_rows(rows: jax.Array) -> jax.Array:
    """Each row with length 1."""
    return rows / jnp.linalg.norm(rows, axis=1, keepdims=True)


def encode(sae: Sae, x: jax.Array, top_k: int = TOP_K) -> jax.Array:
    """The features of `x` [tokens, width]: [tokens, features], at most `top_k` of a token not 0."""
    active = jax.nn.relu(x @ sae["W_enc"] + sae["b_enc"][None])
    least = jax.lax.top_k(active, top_k)[0][:, -1:]
    return jnp.where(active >= least, active, 0.0)


def decode(sae: Sae, features: jax.Array) -> jax.Array:
    """The activations that these features stand for."""
    return features @ sae["W_dec"] + sae["b_dec"][None]


def unexplained(sae: Sae, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The share of the variance that the autoencoder does not explain; and which features fired.

    `x` is centred already, so its mean square is its variance.
    """
    features = encode(sae, x)
    return jnp.sum((x - decode(sae, features)) ** 2) / jnp.sum(x**2), (features > 0).any(axis=0)


@jax.jit
def train_step(state: State, x: jax.Array) -> tuple[State, jax.Array]:
    """The state after one step, and the share that was not explained before it."""
    (lost, fired), gradient = jax.value_and_grad(unexplained, has_aux=True)(state["sae"], x)
    updates, memory = optimizer.update(gradient, state["optimizer"])
    sae = optax.apply_updates(state["sae"], updates)
    sae["W_dec"] = unit_rows(sae["W_dec"])
    idle = jnp.where(fired, 0, state["idle"] + len(x))
    return {"sae": sae, "optimizer": memory, "idle": idle, "step": state["step"] + 1}, lost


# %% [markdown]
# ## A checkpoint
#
# It holds the place in the stream beside the weights. The normalisation is in the stream's state:
# an autoencoder is of no use without it.


# %%
def save_checkpoint(path: Path, state: State, batches: Any) -> None:  # noqa: ANN401 - of a stream or a dataset
    """Write both in one file, so that no kill can part them."""
    content = {"state": state, "batches": json.dumps(batches.state_dict())}
    beside = path.with_suffix(".writing")
    beside.write_bytes(serialization.to_bytes(content))
    os.replace(beside, path)


def load_checkpoint(path: Path, state: State, batches: Any) -> State:  # noqa: ANN401
    """Return the saved state, with the shape of `state`; `batches` continue where they were."""
    content = serialization.from_bytes({"state": state, "batches": ""}, path.read_bytes())
    batches.load_state_dict(json.loads(content["batches"]))
    return content["state"]


# %% [markdown]
# ## Training


# %%
def train(batches: Any, state: State, steps: int, checkpoint: Path | None = None) -> State:  # noqa: ANN401
    """Return the state after `steps` steps in all, epoch after epoch. Print progress ten times."""
    told, begun, begun_at = max(steps // 10, 1), time.perf_counter(), int(state["step"])
    epochs = itertools.chain.from_iterable(itertools.repeat(batches))
    for step, batch in enumerate(itertools.islice(epochs, steps - begun_at), begun_at + 1):
        x = batch.activations[:, 0]
        state, lost = train_step(state, x)
        if step % told == 0:
            dead = int((state["idle"] > DEAD_AFTER).sum())
            speed = (step - begun_at) * len(x) / (time.perf_counter() - begun)
            print(f"step {step}: {1 - float(lost):.1%} explained, {dead} of {len(state['idle'])} features dead", end="")
            print(f", {speed:,.0f} tokens/s", flush=True)
        if checkpoint is not None and (step % SAVE_EVERY == 0 or step == steps):
            save_checkpoint(checkpoint, state, batches)
    return state


# %% [markdown]
# ## A folder that SAELens and `layertap view` open


# %%
def save_sae(folder: Path, folded: dict[str, np.ndarray], top_k: int, hook: str) -> None:
    """Write the autoencoder as SAELens does; its activations are as the model has them."""
    features, width = folded["W_dec"].shape
    folder.mkdir(exist_ok=True)
    save_file({name: array.astype(np.float32) for name, array in folded.items()}, folder / "sae_weights.safetensors")
    config = {"architecture": "topk", "k": top_k, "d_in": width, "d_sae": features, "dtype": "float32", "device": "cpu"}
    config |= {"apply_b_dec_to_input": False, "normalize_activations": "none", "metadata": {"hook_name": hook}}
    (folder / "cfg.json").write_text(json.dumps(config, indent=2))


# %% [markdown]
# ## All of it
#
# A stream runs the model a pool of tokens ahead of the training; a stored run is read instead.
# `center` and `scale` are measured in the first pool. In the end they are folded into the weights,
# which from then on take and give activations as the model has them.


# %%
def open_source() -> Any:  # noqa: ANN401 - a stream or a dataset, which give the same batches
    """The stored run, or a stream of a model and tasks that are made where there are none."""
    if RUN is not None:
        return layertap.ActivationDataset(RUN)
    if MODEL == "model" and not Path(MODEL).exists():
        write_checkpoint(Path(MODEL), "tiny")
        write_tasks(Path(TASKS), make_tasks(8 if QUICK else 96))
    return layertap.ActivationStream(
        dataset_path=TASKS, model_path=MODEL, layers_to_extract=[LAYER], activation_type=[SITE], compute_dtype="float32"
    )


def main() -> None:
    """Train, fold, save, and check the folded weights."""
    source = open_source()
    batches = source.batches(
        BATCH,
        layers=[LAYER],
        sites=[SITE],
        exclude={"first", "special", "sink"},
        as_="jax",
        drop_last=True,
        center=True,
        scale="unit_rms",
    )
    state = init_state(0, source.taps[LAYER, SITE], FEATURES)
    if CHECKPOINT.exists():
        state = load_checkpoint(CHECKPOINT, state, batches)
        print(f"continuing after step {int(state['step'])}")
    state = train(batches, state, STEPS, CHECKPOINT)

    normalisation = batches.normalisation[LAYER, SITE]
    folded = fold(**state["sae"], inputs=normalisation)._asdict()
    save_sae(SAE, folded, TOP_K, f"blocks.{LAYER}.hook_resid_post")

    x = next(iter(batches)).activations[:, 0]
    batches.close()
    raw = {name: jnp.asarray(array, jnp.float32) for name, array in folded.items()}
    given = normalisation.undo(x)  # as the model has them
    expected = normalisation.undo(decode(state["sae"], encode(state["sae"], x)))
    off = jnp.abs(decode(raw, encode(raw, given)) - expected).max() / jnp.abs(expected).max()
    print(f"folded into {SAE}; on raw activations its largest difference is {off:.0e}")


if __name__ == "__main__":
    main()
