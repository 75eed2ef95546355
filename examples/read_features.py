# %% [markdown]
# # What features fire on
#
# A feature of an autoencoder is a number. To know what it stands for, a person looks at the tokens
# where it is largest, in their contexts. `read_features` walks over a dataset once, and remembers
# of each feature where it was largest and how often it fired; the memory is that of a batch.
#
# `encode` and `decode` are those of any trainer: torch tensors [tokens, width] to [tokens,
# features] and back, on activations as the model has them.

# %%
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

import layertap

QUICK = "--quick" in sys.argv  # as the tests run it

CONTEXTS = 3 if QUICK else 6
REMEMBERED = 40  # of which those from one sample count once
BEFORE, AFTER = 10, 3  # tokens of context
BATCH = 1024

Map = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Features:
    """The results of a pass over a dataset."""

    explained: float
    """The share of the variance that the autoencoder explains."""
    active: float
    """How many features fire at a token."""
    frequency: torch.Tensor
    """At which share of the tokens each one fires; [features]."""
    largest: torch.Tensor
    """[REMEMBERED, features], and where that was: """
    samples: torch.Tensor
    positions: torch.Tensor


@torch.no_grad()
def read_features(dataset: layertap.ActivationDataset, encode: Map, decode: Map) -> Features:
    """Read the dataset once, without first tokens and sinks."""
    batches = dataset.batches(BATCH, exclude={"first", "sink"}, as_="torch", dtype="float32", shuffle=False)
    tokens, lost, squares, total, fired = 0, 0.0, 0.0, 0.0, 0.0
    largest = samples = positions = None
    for batch in batches:
        x = batch.activations[:, 0]
        features = encode(x)
        tokens += len(x)
        lost += (x - decode(features)).double().square().sum()
        squares, total = squares + x.double().square().sum(), total + x.double().sum(dim=0)
        fired = fired + (features > 0).sum(dim=0)
        here = [
            torch.as_tensor(numbers)[:, None].expand(features.shape) for numbers in (batch.samples, batch.positions)
        ]
        candidates = [features, *here]
        if largest is not None:
            candidates = [torch.cat(both) for both in zip((largest, samples, positions), candidates, strict=True)]
        largest, order = candidates[0].topk(min(REMEMBERED, len(candidates[0])), dim=0)
        samples, positions = (numbers.gather(0, order) for numbers in candidates[1:])
    variance = squares - total.square().sum() / tokens
    frequency = fired / tokens
    return Features(float(1 - lost / variance), float(frequency.sum()), frequency, largest, samples, positions)


# %% [markdown]
# ## In words


# %%
def show(dataset: layertap.ActivationDataset, features: Features, feature: int, contexts: int = CONTEXTS) -> None:
    """Print where the feature is largest, each time in another sample."""
    print(f"feature {feature}, at {features.frequency[feature]:.2%} of the tokens")
    for value, sample, position in list(places(features, feature))[:contexts]:
        print(f"  {value:8.2f}  {in_context(dataset[sample].tokens, position)}")


def places(features: Features, feature: int) -> Iterator[tuple[float, int, int]]:
    """Return value, sample and position where it is largest, once for each sample."""
    seen = set()
    columns = (features.largest, features.samples, features.positions)
    for value, sample, position in zip(*(column[:, feature].tolist() for column in columns), strict=True):
        if value > 0 and sample not in seen:
            seen.add(sample)
            yield value, sample, position


def in_context(tokens: list[str], position: int) -> str:
    """Return the token in «», with some tokens before and after it, in one line."""
    before, after = tokens[max(position - BEFORE, 0) : position], tokens[position + 1 : position + 1 + AFTER]
    marked = f"{''.join(before)}«{tokens[position]}»{''.join(after)}"
    return marked.replace("\n", "⏎").replace("\t", " ")


def readable(features: Features, count: int, most: float = 0.01) -> list[int]:
    """The features that are large in several texts, among those that fire at under 1 % of the
    tokens: in the order of the last value that `show` prints of them.

    What fires everywhere is seldom about something, and what is large once may be an accident.
    """
    least = {}
    for feature in torch.nonzero(features.frequency <= most).flatten().tolist():
        values = [value for value, _, _ in places(features, feature)]
        if len(values) >= CONTEXTS:
            least[feature] = values[CONTEXTS - 1]
    return sorted(least, key=lambda feature: -least[feature])[:count]
