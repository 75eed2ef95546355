"""What an array of a dump can be: one of our taps, or the final norm of one.

The final norm is a candidate of its own because transformers applies it to the last of its
`hidden_states`, and tools that are built on it hand that on. A layer's input is the output of the
layer before, number for number, so it is one candidate, under the name of the output.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from layertap.core.taps import SITES, Site, Tap

EMBEDDINGS = Tap(0, "residual_in")


class Candidate(NamedTuple):
    """A tap, or what the model's final norm makes of it."""

    tap: Tap
    normed: bool = False

    def describe(self) -> str:
        """In a sentence."""
        place = "the embeddings" if self.tap == EMBEDDINGS else f"`{self.tap.site}` of layer {self.tap.layer}"
        return f"the final norm of {place}" if self.normed else place

    def short(self) -> str:
        """In a cell of a table."""
        place = "embeddings" if self.tap == EMBEDDINGS else f"{self.tap.site} {self.tap.layer}"
        return f"norm({place})" if self.normed else place

    @property
    def depth(self) -> int:
        """How many layers have left their rounding in it."""
        return 0 if self.tap == EMBEDDINGS else self.tap.layer + 1


@dataclass(frozen=True)
class ModelFacts:
    """What has to be known of the model before a dump can be read."""

    name: str
    num_layers: int
    widths: dict[Site, int]
    """Of each site."""
    vocab_size: int
    opening_ids: tuple[int, ...] = ()
    """What its tokenizer puts before a text."""
    chat_opening: tuple[int, ...] = ()
    """What its chat template puts before what a user says."""
    special_ids: frozenset[int] = frozenset()
    context: int | None = None
    """The most tokens that it takes."""

    def sites_of(self, width: int) -> tuple[Site, ...]:
        """The sites at which a token has so many numbers."""
        return tuple(site for site in SITES if self.widths[site] == width)


@dataclass(frozen=True, eq=False)
class FinalNorm:
    """The norm behind the last layer."""

    scale: np.ndarray
    epsilon: float

    def __call__(self, values: np.ndarray) -> np.ndarray:
        """Of each row; float32."""
        mean_square = np.mean(np.square(values, dtype=np.float32), axis=-1, keepdims=True)
        return values / np.sqrt(mean_square + np.float32(self.epsilon)) * self.scale


def one_name(tap: Tap) -> Tap:
    """The name under which a tap is a candidate."""
    return Tap(tap.layer - 1, "residual") if tap.site == "residual_in" and tap.layer > 0 else tap


def candidate_taps(layers: Iterable[int], sites: Sequence[Site]) -> tuple[Tap, ...]:
    """These sites of these layers, each once, and the embeddings where the stream is among them."""
    taps = [one_name(Tap(layer, site)) for layer in layers for site in sites]
    return tuple(dict.fromkeys(taps))
