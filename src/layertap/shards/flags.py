"""Flags of tokens: what a reader may want to leave out. Nothing is ever left out here.

    bit   name      set where
    1     FIRST     the token is the first of its sample
    2     SPECIAL   the token is one of the tokenizer's special tokens, such as `<|im_start|>`
    4     SINK      the norm of its activation exceeds `SINK_FACTOR` times the median norm

FIRST and SPECIAL are the same at every tap. SINK is for each (layer, site) by itself: an attention sink, whose massive
activation would otherwise rule every mean and every reconstruction loss. Its median is over all the tokens of the
shard at that tap. So it is robust (a sample alone, or the samples so far, would be few), and it follows from the
content of one shard: it does not matter where a run was interrupted, and whoever holds the shard can compute it again.

Norms are those of the values as stored, after rounding to the storage dtype.
"""

from collections.abc import Sequence, Set

import numpy as np
from jaxtyping import Int32, UInt8

from layertap.shards.samples import StoredSample
from layertap.shards.statistics import Norms

FIRST, SPECIAL, SINK = 1, 2, 4
SINK_FACTOR = 10.0

Flags = UInt8[np.ndarray, " tokens"]


def sink_threshold(norms: Norms) -> float:
    """The norm above which a token of the shard is a sink; `norms` of all its tokens at one tap."""
    finite = norms[np.isfinite(norms)]
    return SINK_FACTOR * float(np.median(finite)) if finite.size else np.inf


def token_flags(token_ids: Int32[np.ndarray, " tokens"], norms: Norms, threshold: float, special: Set[int]) -> Flags:
    """The flags of a sample's tokens at one tap."""
    flags = np.where(norms > threshold, np.uint8(SINK), np.uint8(0))
    flags[np.isin(token_ids, sorted(special))] |= SPECIAL
    flags[:1] |= FIRST
    return flags


def shard_flags(samples: Sequence[StoredSample], norms: Sequence[Norms], special: Set[int]) -> list[Flags]:
    """The flags of each sample of a shard at one tap, where its tokens have these norms."""
    threshold = sink_threshold(np.concatenate(norms))
    pairs = zip(samples, norms, strict=True)
    return [token_flags(sample.token_ids, own, threshold, special) for sample, own in pairs]
