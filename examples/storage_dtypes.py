# %% [markdown]
# # What it costs to store 8 bits
#
# `--storage_dtype float8_e4m3` and `int8` store half of bfloat16. Are the activations still good to
# train on? Here the same texts go through the same model once for each storage dtype, computed in
# float32, so that nothing but storing makes a difference:
#
# - the certificate of each run, which is of the first prompts;
# - the relative error and the cosine of all tokens, sinks (massive activations) apart;
# - a small TopK autoencoder trained on each run at equal sparsity, the same batches in the same
#   order, and tried on other texts, stored in float32.
#
# The model has trained weights, and so massive activations (real_model.py). One core needs twelve
# minutes. Start it in an empty folder; what is there already is not made again.

# %%
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from python_texts import write_texts
from real_model import make_model
from train_jax import decode, encode, init_state, train

import layertap
from layertap.core.columns import SINK
from layertap.reader import fold

QUICK = "--quick" in sys.argv  # as the tests run it

DTYPES = ("float32", "bfloat16", "float16", "float8_e4m3", "int8")
LAYER = 2 if QUICK else 12
TOKENS, HELD_OUT_TOKENS = (1_500, 600) if QUICK else (24_000, 6_000)
FEATURES = 128 if QUICK else 1024
BATCH, STEPS, SEEDS = (256, 10, 1) if QUICK else (512, 120, 2)
CERTIFIED = 2 if QUICK else 8

# %% [markdown]
# ## The runs


# %%
def extract(model: str, texts: str, folder: str, dtype: str, tokens: int) -> layertap.ActivationDataset:
    """Run the extraction of these texts, stored in this dtype."""
    return layertap.extract(
        dataset_path=texts,
        dataset_format="text",
        model_path=model,
        max_seq_length=512,
        overlong="truncate",
        max_tokens_total=tokens,
        layers_to_extract=[LAYER],
        compute_dtype="float32",
        certify=CERTIFIED,
        format="safetensors",
        storage_dtype=dtype,
        output_dir=folder,
        checkpoint_dir=f"{folder}/checkpoints",
    )


# %% [markdown]
# ## Token by token


# %%
def errors(found: np.ndarray, expected: np.ndarray) -> str:
    """Return the mean and the worst relative error of some tokens, and how far the worst cosine is
    from 1.
    """
    if not len(expected):
        return "none"
    lengths = np.linalg.norm(expected, axis=1)
    relative = np.linalg.norm(found - expected, axis=1) / lengths
    cosines = np.vecdot(found, expected) / (lengths * np.linalg.norm(found, axis=1))
    return f"{relative.mean():.1e}, {relative.max():.1e}; {1 - cosines.min():.0e}"


def compare(stored: layertap.ActivationDataset, exact: layertap.ActivationDataset) -> str:
    """The errors of tokens that are no sinks; of sinks; of sinks without the channel that makes
    them such; and of the prompts that the certificate is of.
    """
    pairs = [(ours.activation(LAYER), truth.activation(LAYER)) for ours, truth in zip(stored, exact, strict=True)]
    found, expected = (np.concatenate(side).astype(np.float64) for side in zip(*pairs, strict=True))
    sinks = np.concatenate([sample.flags(LAYER) & SINK != 0 for sample in exact])
    channels = np.unique(np.abs(expected[sinks]).argmax(axis=1))
    without = [np.delete(values[sinks], channels, axis=1) for values in (found, expected)]
    told = stored.runs[0][1].certificate["taps"][0]
    certificate = f"{told['relative_error_mean']:.1e}, {told['relative_error_max']:.1e}; {1 - told['cosine_min']:.0e}"
    of_tokens = [errors(found[chosen], expected[chosen]) for chosen in (~sinks, sinks)]
    return " | ".join([*of_tokens, errors(*without), certificate])


# %% [markdown]
# ## An autoencoder on each
#
# Sinks are left out, as every trainer should. Explained variance is of held-out activations as the
# model has them: what normalising did in training is folded into the weights.


# %%
def explained(stored: layertap.ActivationDataset, held_out: np.ndarray, seed: int) -> float:
    """Return the share of the variance of `held_out` that training on `stored` explains."""
    batches = stored.batches(
        BATCH,
        layers=[LAYER],
        exclude={"first", "sink"},
        dtype="float32",
        as_="jax",
        drop_last=True,
        center=True,
        scale="unit_rms",
    )
    width = stored.width(LAYER)
    state = train(batches, init_state(seed, width, FEATURES), STEPS)
    batches.close()
    folded = fold(**state["sae"], inputs=batches.normalisation[LAYER, "residual"])._asdict()
    sae = {name: jnp.asarray(array, jnp.float32) for name, array in folded.items()}
    lost = held_out - np.asarray(decode(sae, encode(sae, jnp.asarray(held_out))))
    return 1 - float((lost**2).sum() / ((held_out - held_out.mean(axis=0)) ** 2).sum())


def of_trainers(held_out: layertap.ActivationDataset) -> np.ndarray:
    """Return all activations but those of sinks and first tokens; float32 [tokens, width]."""
    batches = held_out.batches(HELD_OUT_TOKENS, layers=[LAYER], exclude={"first", "sink"}, shuffle=False)
    return np.concatenate([batch.activations[:, 0] for batch in batches]).astype(np.float32)


# %% [markdown]
# ## All of it


# %%
def main() -> None:
    """Make the runs; print bytes a token, errors, and for each seed the shares."""
    model = make_model()
    if not Path("texts.jsonl").exists():
        write_texts(Path("texts.jsonl"), Path("held_out.jsonl"))
    runs = {dtype: extract(model, "texts.jsonl", dtype, dtype, TOKENS) for dtype in DTYPES}
    held_out = extract(model, "held_out.jsonl", "held_out", "float32", HELD_OUT_TOKENS)
    print(f"{runs['float32'].tokens} tokens to train on, {held_out.tokens} held out", flush=True)
    for dtype, run in runs.items():
        size = sum(path.stat().st_size for path in Path(dtype).glob("*.safetensors"))
        print(f"| {dtype} | {size / run.tokens:.0f} | {compare(run, runs['float32'])} |", flush=True)
    tried = of_trainers(held_out)
    for seed in range(SEEDS):
        for dtype, run in runs.items():
            print(f"| {dtype} | {seed} | {explained(run, tried, seed):.4f} |", flush=True)


if __name__ == "__main__":
    main()
