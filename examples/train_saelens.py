# %% [markdown]
# # An autoencoder trained by SAELens, with features to read
#
# SAELens' own trainer takes activations of a model with trained weights from us, batch by batch.
# Then its features are read: for each, the tokens where it is largest.
#
# It needs `pip install 'layertap[examples]' sae-lens` (6.54.12 was tried). The model is made as
# [real_model.py](real_model.py) says, the texts are those of [python_texts.py](python_texts.py).
# Twenty minutes on two busy cores, six minutes of processor time.

# %%
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from python_texts import write_texts
from read_features import read_features, readable, show
from real_model import make_model
from sae_lens import SAE, SAETrainer, TopKTrainingSAE, TopKTrainingSAEConfig
from sae_lens.config import SAETrainerConfig

import layertap
from layertap.export import for_saelens
from layertap.reader import fold

QUICK = "--quick" in sys.argv  # as the tests run it

LAYER = 2 if QUICK else 12
FEATURES, TOP_K = (256, 16) if QUICK else (2048, 32)
BATCH, STEPS = (256, 80) if QUICK else (1024, 600)
TOLD_EVERY = STEPS // 8
SHOWN = 2 if QUICK else 12

# %% [markdown]
# ## Activations
#
# Texts are split into contexts of 256 tokens. On disk, so that they can be read several times, and
# by another trainer: call it again, and it finds them done.

# %%
write_texts(Path("texts.jsonl"), Path("held_out.jsonl"))


def activations_of(name: str) -> layertap.ActivationDataset:
    """Return the activations of NAME.jsonl, in the folder NAME."""
    return layertap.extract(
        dataset_path=f"{name}.jsonl",
        model_path=make_model(),
        layers_to_extract=[LAYER],
        max_seq_length=256,
        overlong="split",
        format="safetensors",
        output_dir=name,
        checkpoint_dir=f"{name}/checkpoints",
    )


dataset, held_out = activations_of("texts"), activations_of("held_out")
print(dataset)

# %% [markdown]
# ## Training
#
# Batches come centred and scaled to E‖x‖ = √width, which is SAELens' own scale, so that its
# normalisation is "none". First tokens and sinks, whose norm is 150 times that of the others, are
# left out. SAELens prints no loss by itself; the iterator is a good place to look, for a batch is
# there before it is trained on.

# %%
batches = dataset.batches(BATCH, exclude={"first", "sink"}, center=True, scale="sqrt_d", drop_last=True)
torch.manual_seed(0)
sae = TopKTrainingSAE(
    TopKTrainingSAEConfig(d_in=dataset.hidden_size, d_sae=FEATURES, k=TOP_K, normalize_activations="none")
)
settings = SAETrainerConfig(
    total_training_samples=STEPS * BATCH,
    train_batch_size_samples=BATCH,
    lr=1e-3,
    lr_end=1e-4,
    lr_warm_up_steps=STEPS // 20,
    lr_decay_steps=STEPS // 4,
    dead_feature_window=STEPS // 8,
)


def told(tensors: Iterator[torch.Tensor]) -> Iterator[torch.Tensor]:
    """Yield the same batches; now and then print how well the autoencoder explains one."""
    for step, x in enumerate(tensors):
        if step % TOLD_EVERY == 0:
            with torch.no_grad():
                lost = (sae(x) - x).square().sum(dim=1).mean()
            variance = (x - x.mean(dim=0)).square().sum(dim=1).mean()
            print(f"step {step}: loss {lost:.1f} a token, {1 - lost / variance:.1%} explained", flush=True)
        yield x


trainer = SAETrainer(settings, sae, told(for_saelens(batches)))
trainer.fit()
print(f"{STEPS * BATCH / dataset.tokens:.1f} epochs; dead at the end:", end=" ")
print(f"{int(trainer.dead_neurons.sum())} of {FEATURES} features")

# %% [markdown]
# ## Folding
#
# The map of the batches goes into the weights, so that the autoencoder takes activations as the
# model has them. Then it is saved and loaded, as anyone would load it.

# %%
folded = fold(
    sae.W_enc.data,
    sae.b_enc.data,
    sae.W_dec.data,
    sae.b_dec.data,
    batches.normalisation[LAYER, "residual"],
    subtracts_b_dec=sae.cfg.apply_b_dec_to_input,
)
for name, values in folded._asdict().items():
    getattr(sae, name).data = torch.as_tensor(values, dtype=torch.float32)
sae.save_model("sae")
sae = SAE.load_from_disk("sae")

# %% [markdown]
# ## What came out
#
# Of texts that it was trained on, and of others.

# %%
features = read_features(dataset, sae.encode, sae.decode)
others = read_features(held_out, sae.encode, sae.decode)
print(f"of the texts: {features.explained:.1%} explained by {features.active:.1f} features a token")
print(f"of other texts: {others.explained:.1%} explained")
silent = int((features.frequency == 0).sum())
print(f"{silent} of {FEATURES} features are silent; half of the others fire at under", end=" ")
print(f"{features.frequency[features.frequency > 0].median():.2%} of the tokens")

# %% [markdown]
# The most active ones, which fire at many tokens:

# %%
for feature in torch.argsort(features.frequency, descending=True)[: SHOWN // 2].tolist():
    show(dataset, features, feature, contexts=3)

# %% [markdown]
# And those that fire seldom and are large in several texts; the token is in «».

# %%
for feature in readable(features, SHOWN):
    show(dataset, features, feature)
