"""Where an activation is read: a tap is one (layer, site).

    site       what it is                                             Hugging Face module
    residual   the layer's output, both adds done, before any norm    model.layers.N
    mlp        the MLP's output, before it is added                   model.layers.N.mlp
    attn       the attention's output after o_proj, before it is added  model.layers.N.self_attn

Layers are counted from 0. Beware of `hidden_states[N + 1]` as a reference for `residual`: for the
last layer transformers puts the *final norm's* output there, not the layer's.
"""

import re
from collections.abc import Sequence
from typing import Literal, NamedTuple

from layertap.errors import UsageError

Site = Literal["residual", "mlp", "attn"]
SITES: tuple[Site, ...] = ("residual", "mlp", "attn")


class Tap(NamedTuple):
    """One (layer, site); hashable, so that a compiled program can be chosen by its taps."""

    layer: int
    site: Site


_LAYERS = re.compile(r"(\d{1,4})(?:-(\d{1,4}))?", re.ASCII)


_FORMS = "Count layers from 0: give 6 12, 6,12, 1-3, or the word all"


def parse_layers(words: Sequence[str]) -> tuple[int, ...]:
    """The layers that `6 12`, `6,12`, `1-3` or any mixture of these name; none for `all`, which
    stands alone.

    Raises UsageError for anything else, and for nothing: a variable that is not set does not ask
    for all. Layers are not counted from the end: a run is planned, and its output named, by numbers
    that mean the same in every model.
    """
    parts = [part for word in words for part in word.split(",") if part]
    if not parts:
        raise UsageError(f"no layer is given. {_FORMS}")
    if parts == ["all"]:
        return ()
    return tuple(layer for part in parts for layer in _range(part))


def _range(part: str) -> range:
    match = _LAYERS.fullmatch(part)
    first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
    if last < first:
        raise UsageError(f"layer {part!r}: is not a layer, or a range of layers. {_FORMS}")
    return range(first, last + 1)
