"""The candidates for an array of a dump: our taps, and the final norm of a tap.

The final norm is a separate candidate because transformers applies it to the last of its
`hidden_states`, and tools built on transformers pass that on. A layer's input equals the output of
the layer before, so both are one candidate, with the name of the output.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from layertap.core.taps import SITES, Site, Tap

EMBEDDINGS = Tap(0, "residual_in")


class Candidate(NamedTuple):
    """A tap, or the model's final norm of it."""

    tap: Tap
    normed: bool = False

    def describe(self) -> str:
        """Return the candidate's name for a sentence."""
        place = "the embeddings" if self.tap == EMBEDDINGS else f"`{self.tap.site}` of layer {self.tap.layer}"
        return f"the final norm of {place}" if self.normed else place

    def short(self) -> str:
        """Return the candidate's name for a table cell."""
        place = "embeddings" if self.tap == EMBEDDINGS else f"{self.tap.site} {self.tap.layer}"
        return f"norm({place})" if self.normed else place

    @property
    def depth(self) -> int:
        """How many layers have added their rounding to it."""
        return 0 if self.tap == EMBEDDINGS else self.tap.layer + 1


@dataclass(frozen=True)
class ModelFacts:
    """Facts about the model that are needed to read a dump."""

    name: str
    num_layers: int
    widths: dict[Site, int]
    """The width of each site."""
    vocab_size: int
    opening_ids: tuple[int, ...] = ()
    """The tokens that its tokenizer puts before a text."""
    chat_opening: tuple[int, ...] = ()
    """The tokens that its chat template puts before a user's message."""
    special_ids: frozenset[int] = frozenset()
    context: int | None = None
    """The most tokens that it accepts."""

    def sites_of(self, width: int) -> tuple[Site, ...]:
        """Return the sites with this width."""
        return tuple(site for site in SITES if self.widths[site] == width)


@dataclass(frozen=True, eq=False)
class FinalNorm:
    """The norm after the last layer."""

    scale: np.ndarray
    epsilon: float

    def __call__(self, values: np.ndarray) -> np.ndarray:
        """Normalise each row; float32."""
        mean_square = np.mean(np.square(values, dtype=np.float32), axis=-1, keepdims=True)
        return values / np.sqrt(mean_square + np.float32(self.epsilon)) * self.scale


def one_name(tap: Tap) -> Tap:
    """Return the tap that stands for this one among the candidates."""
    return Tap(tap.layer - 1, "residual") if tap.site == "residual_in" and tap.layer > 0 else tap


def candidate_taps(layers: Iterable[int], sites: Sequence[Site]) -> tuple[Tap, ...]:
    """Return these sites of these layers, each once, with the embeddings if the stream is
    included.
    """
    taps = [one_name(Tap(layer, site)) for layer in layers for site in sites]
    return tuple(dict.fromkeys(taps))
