# %% [markdown]
# # A dictionary trained by dictionary_learning
#
# The same activations as in [train_saelens.py](train_saelens.py), for the trainer of
# `dictionary_learning`, which does its own normalising. Started in the same folder, it finds them
# done.
#
# It needs `pip install 'layertap[examples]'` and dictionary-learning (0.1.0 was tried);
# `tests/contract/` shows how to install that without gigabytes of CUDA. Some minutes on two busy
# cores, once the activations are there.

# %%
import sys
from pathlib import Path

from dictionary_learning.trainers.top_k import AutoEncoderTopK, TopKTrainer
from dictionary_learning.training import trainSAE
from python_texts import write_texts
from read_features import read_features, readable, show
from real_model import make_model

import layertap
from layertap.export import for_dictionary_learning

QUICK = "--quick" in sys.argv  # as the tests run it

LAYER = 2 if QUICK else 12
FEATURES, TOP_K = (256, 16) if QUICK else (2048, 32)
BATCH, STEPS = (256, 80) if QUICK else (1024, 600)

# %%
write_texts(Path("texts.jsonl"), Path("held_out.jsonl"))
dataset, held_out = (
    layertap.extract(
        dataset_path=f"{name}.jsonl",
        model_path=make_model(),
        layers_to_extract=[LAYER],
        max_seq_length=256,
        overlong="split",
        format="safetensors",
        output_dir=name,
        checkpoint_dir=f"{name}/checkpoints",
    )
    for name in ("texts", "held_out")
)

# %% [markdown]
# ## Training
#
# `verbose` prints how much of the variance is explained. `normalize_activations` measures a factor
# in 100 batches, and puts it into the biases in the end.

# %%
batches = dataset.batches(BATCH, exclude={"first", "sink"}, drop_last=True)
settings = {
    "trainer": TopKTrainer,
    "dict_class": AutoEncoderTopK,
    "activation_dim": dataset.hidden_size,
    "dict_size": FEATURES,
    "k": TOP_K,
    "lr": 1e-3,
    "steps": STEPS,
    "warmup_steps": STEPS // 20,
    "decay_start": STEPS * 3 // 4,
    "layer": LAYER,
    "lm_name": dataset.model_path,
    "device": "cpu",
    "seed": 0,
}
trainSAE(
    for_dictionary_learning(batches),
    [settings],
    steps=STEPS,
    device="cpu",
    save_dir="dictionaries",
    normalize_activations=True,
    verbose=True,
    log_steps=STEPS // 8,
)

# %% [markdown]
# ## What came out

# %%
dictionary = AutoEncoderTopK.from_pretrained("dictionaries/trainer_0/ae.pt", k=TOP_K, device="cpu")
features = read_features(dataset, dictionary.encode, dictionary.decode)
others = read_features(held_out, dictionary.encode, dictionary.decode)
print(f"of the texts: {features.explained:.1%} explained by {features.active:.1f} features a token")
print(f"of other texts: {others.explained:.1%} explained")
print(f"{int((features.frequency == 0).sum())} of {FEATURES} features are silent")
for feature in readable(features, 2 if QUICK else 6):
    show(dataset, features, feature, contexts=3)
