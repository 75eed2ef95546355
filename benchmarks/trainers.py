"""Batches into a trainer that does nothing: how many tokens a second arrive, and when the first.

    stream   `layertap.ActivationStream`, one pool made while the one before is used
    saelens  SAELens' own `ActivationsStore`, with transformers' model

Both hand out batches of the same size from pools of the same size, of the same prompts, at the
first of the layers. SAELens wants contexts of one length. It is given the prompts' tokens one after
the other, cut into contexts, so it computes nothing in vain. What it has computed and still keeps
in its buffer counts for it. Loading counts for neither; the first batch is timed without it.
"""

import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from benchmarks.config import ContenderConfig
from benchmarks.workload import Figures, model_folder, prompt_ids

BATCH_TOKENS = 2048
POOL_TOKENS = 4096
CONTEXT = 512


def stream(config: ContenderConfig) -> Figures:
    """Measure Layertap's stream."""
    import layertap

    begun = time.perf_counter()
    stream = layertap.ActivationStream(
        dataset_path=config.dataset_path,
        max_tasks=config.tasks,
        model_path=str(model_folder(config)),
        predictions_per_task=1,
        compute_dtype=config.dtype,
        layers_to_extract=config.layers[:1],
    )
    batches = stream.batches(BATCH_TOKENS, pool_tokens=POOL_TOKENS, as_="torch", dtype="float32")
    figures = _drained((batch.activations for batch in batches), begun, lambda: stream.progress.waited["loading"])
    stream.close()
    return figures


def saelens(config: ContenderConfig) -> Figures:
    """Measure SAELens' store."""
    import torch
    from datasets import Dataset
    from sae_lens import ActivationsStore
    from sae_lens.load_model import load_model

    tokens = np.concatenate(prompt_ids(config))
    contexts = tokens[: len(tokens) // CONTEXT * CONTEXT].reshape(-1, CONTEXT)
    hook = f"model.layers.{config.layers[0]}"
    kwargs = {"dtype": {"float32": torch.float32, "bfloat16": torch.bfloat16}[config.dtype]}
    model = load_model("AutoModelForCausalLM", str(model_folder(config)), "cpu", kwargs, [hook])
    store: Any = ActivationsStore(
        model=model,
        dataset=Dataset.from_dict({"tokens": contexts.tolist()}),
        streaming=False,
        hook_name=hook,
        hook_head_index=None,
        context_size=CONTEXT,
        d_in=model.model.config.hidden_size,
        n_batches_in_buffer=POOL_TOKENS // CONTEXT,
        total_training_tokens=1,
        store_batch_size_prompts=4,
        train_batch_size_tokens=BATCH_TOKENS,
        prepend_bos=False,
        normalize_activations="none",
        device=torch.device("cpu"),
        dtype="float32",
        activations_mixing_fraction=0.0,
    )
    batches = max(1, (contexts.size - POOL_TOKENS) // BATCH_TOKENS)  # what is left then is in its buffer
    figures = _drained((next(store) for _ in range(batches)), time.perf_counter(), lambda: 0.0)
    return figures | {"tokens": store.n_dataset_processed * CONTEXT}


def _drained(batches: Iterator[Any], begun: float, loading: Any) -> Figures:  # noqa: ANN401
    """Take all batches, and do nothing with them."""
    tokens, first = 0, 0.0
    for batch in batches:
        first = first or time.perf_counter() - begun
        tokens += len(batch)
    seconds = time.perf_counter() - begun
    return {"tokens": tokens, "seconds": seconds - loading(), "first_batch": first - loading(), "loading": loading()}
