"""Where an activation is read: a tap is one (layer, site).

    site          what it is                                            Hugging Face module
    residual      the layer's output, both adds done, before any norm   output of model.layers.N
    residual_in   the layer's input; of layer 0 the embeddings          input of model.layers.N
    residual_mid  the stream between attention and MLP
    attn          what attention adds to the stream                     output of self_attn
    attn_in       the output of the norm before attention               output of input_layernorm
    heads         the heads' results side by side                       input of self_attn.o_proj
    mlp           what the MLP adds to the stream                       output of mlp
    mlp_in        the output of the norm before the MLP                 input of mlp
    neurons       what the MLP's activation and gate leave              input of mlp.down_proj

docs/sites.md draws them. Layers are counted from 0. Beware of `hidden_states[N + 1]` as a reference
for `residual`: for the last layer transformers puts the *final norm's* output there, not the
layer's.
"""

import re
from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

from layertap.errors import UsageError

Site = Literal["residual", "mlp", "attn", "residual_in", "residual_mid", "attn_in", "heads", "mlp_in", "neurons"]
SITES: tuple[Site, ...] = get_args(Site)


class Tap(NamedTuple):
    """One (layer, site); hashable, so that a compiled program can be chosen by its taps."""

    layer: int
    site: Site


def layers_to_run(taps: Sequence[Tap]) -> int:
    """How many layers have to run for these taps; a layer's input needs only those before it."""
    return max(tap.layer + (tap.site != "residual_in") for tap in taps)


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
