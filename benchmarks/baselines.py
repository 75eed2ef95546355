"""transformers, as most scripts use it and at its best. It writes nothing, and loading is not
counted.

    padded   `AutoModelForCausalLM`, batches of 4 in dataset order, padded, on any device
    best     `AutoModel`, hidden states only, one sequence at a time on CPU, which wastes nothing

A card would wait for Python that way. There the best one sorts prompts by length, in batches of up
to 16,384 tokens. They have next to no padding, at the end of a row, where causal attention needs no
mask to keep it apart; so `sdpa` may take its flash kernel. Hidden states are copied to pinned
memory on a stream of their own while the next batch is computed, as Layertap's are.

One prompt runs before the clock starts: what a library does once in a process (kernels, handles,
memory) is not its speed. Both end when the last hidden state has arrived on the host.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from benchmarks.config import ContenderConfig
from benchmarks.device import TORCH_DEVICES
from benchmarks.workload import BATCH, Figures, baseline_ids, model_folder, seconds_of

_CARD_TOKENS = 16_384

Prompts = Sequence[np.ndarray]
Model = Callable[..., Any]


def padded(config: ContenderConfig) -> Figures:
    """Return tokens and seconds of the padded script."""
    from transformers import AutoModelForCausalLM

    model, device = load(AutoModelForCausalLM.from_pretrained, config), TORCH_DEVICES[config.device]
    return timed(lambda prompts: padded_batches(model, prompts, device), baseline_ids(config), device)


def padded_batches(model: Model, prompts: Prompts, device: str) -> None:
    """Run batches of 4, and copy each hidden state to the host when it is ready."""
    import torch

    for first in range(0, len(prompts), BATCH):
        ids, mask = (torch.from_numpy(array).to(device) for array in pad(prompts[first : first + BATCH]))
        for state in model(ids, attention_mask=mask, output_hidden_states=True).hidden_states:
            state.cpu()


def best(config: ContenderConfig) -> Figures:
    """Return tokens and seconds of transformers at its best on this device."""
    from transformers import AutoModel

    model, device = load(AutoModel.from_pretrained, config), TORCH_DEVICES[config.device]
    return timed(lambda prompts: best_of(model, prompts, device), baseline_ids(config), device)


def best_of(model: Model, prompts: Prompts, device: str) -> None:
    """Compute the hidden states of all layers in the way that suits the device."""
    if device == "cpu":
        for ids in prompts:
            hidden_states(model, [ids], device)
        return
    copies = Copies()
    for batch in by_length(prompts, _CARD_TOKENS):
        copies.start(hidden_states(model, batch, device))
    copies.wait()


def last_of(model: Model, prompts: Prompts, device: str) -> None:
    """Do the same for the last layer alone, which copies cannot delay."""
    import torch

    copies = Copies() if device == "cuda" else None
    for batch in by_length(prompts, _CARD_TOKENS) if copies else [[ids] for ids in prompts]:
        state = model(torch.from_numpy(pad(batch)[0]).to(device), use_cache=False).last_hidden_state
        if copies:
            copies.start([state])
    if copies:
        copies.wait()


def by_length(prompts: Prompts, tokens: int) -> list[list[np.ndarray]]:
    """Sort the prompts from long to short, into batches with at most so many tokens when padded; a
    longer one is alone.
    """
    batches: list[list[np.ndarray]] = []
    for ids in sorted(prompts, key=len, reverse=True):
        if batches and (len(batches[-1]) + 1) * len(batches[-1][0]) <= tokens:
            batches[-1].append(ids)
        else:
            batches.append([ids])
    return batches


def hidden_states(model: Model, batch: Prompts, device: str) -> Iterable[Any]:
    """Return the hidden states of all layers, without a mask.

    After the end of a row they mean nothing.
    """
    import torch

    ids = torch.from_numpy(pad(batch)[0])
    if device == "cuda":
        ids = ids.pin_memory()  # from other memory the copy would wait for what is queued
    given = ids.to(device, non_blocking=True)
    states: Iterable[Any] = model(given, output_hidden_states=True, use_cache=False).hidden_states
    return states


def pad(prompts: Prompts) -> tuple[np.ndarray, np.ndarray]:
    """Return token ids in rows as long as the longest, and a mask with ones where they are real."""
    ids = np.zeros((len(prompts), max(map(len, prompts))), np.int64)
    mask = np.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, : len(prompt)] = prompt
        mask[row, : len(prompt)] = 1
    return ids, mask


def timed(run: Callable[[Prompts], None], prompts: Prompts, device: str) -> Figures:
    """Return the seconds for all prompts, after one of them as a warm-up."""
    import torch

    def finished(prompts: Prompts) -> None:
        run(prompts)
        if device == "cuda":
            torch.cuda.synchronize()

    with torch.inference_mode():
        finished(prompts[:1])
        return {"tokens": sum(map(len, prompts)), "seconds": seconds_of(lambda: finished(prompts))}


def load(from_pretrained: Model, config: ContenderConfig) -> Model:
    """Load the model on the device that is measured."""
    import torch

    dtype = getattr(torch, config.dtype)
    model = from_pretrained(model_folder(config), dtype=dtype, attn_implementation="sdpa")
    return model.to(TORCH_DEVICES[config.device])


class Copies:
    """Copies to pinned memory during the computation, at most one batch behind it."""

    def __init__(self) -> None:
        import torch

        self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self._pending: tuple[Any, list[Any]] | None = None

    def start(self, states: Iterable[Any]) -> None:
        """Queue the copies of a batch, and wait for those of the batch before."""
        import torch

        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            host = [state.to("cpu", non_blocking=True) for state in states]  # non_blocking: into pinned memory
        for state in states:
            state.record_stream(self._stream)
        event = self._stream.record_event()
        self.wait()
        self._pending = event, host

    def wait(self) -> None:
        """Wait until everything that was queued before the last `start` returned has arrived."""
        if self._pending is not None:
            self._pending[0].synchronize()
