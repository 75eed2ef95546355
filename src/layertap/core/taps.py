"""Where an activation is read: a tap is one (layer, site).

    site          what it is                                            Hugging Face module
    residual      the layer's output, after both adds, before any norm  output of model.layers.N
    residual_in   the layer's input; in layer 0 the embeddings          input of model.layers.N
    residual_mid  the stream between attention and MLP
    attn          what attention adds to the stream                     output of self_attn
    attn_in       the output of the norm before attention               output of input_layernorm
    heads         the heads' results side by side                       input of self_attn.o_proj
    mlp           what the MLP adds to the stream                       output of mlp
    mlp_in        the output of the norm before the MLP                 input of mlp
    neurons       the MLP's activations, after the gate                 input of mlp.down_proj

docs/sites.md shows a drawing. Layers are counted from 0. Do not use `hidden_states[N + 1]` as a
reference for `residual`: for the last layer, transformers puts the output of the *final norm*
there, not the layer's.
"""

import re
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple, get_args

from layertap.errors import UsageError

Site = Literal["residual", "mlp", "attn", "residual_in", "residual_mid", "attn_in", "heads", "mlp_in", "neurons"]
SITES: tuple[Site, ...] = get_args(Site)


class Tap(NamedTuple):
    """One (layer, site). It is hashable, so that a compiled program can be looked up by its
    taps.
    """

    layer: int
    site: Site


def layers_to_run(taps: Sequence[Tap]) -> int:
    """Return how many layers must run for these taps; a layer's input needs only those before
    it.
    """
    return max(tap.layer + (tap.site != "residual_in") for tap in taps)


def name_layers(layers: Iterable[int]) -> str:
    """Name these layers in words: `layer 2`, `layers 6, 12`, and a range of three or more as
    `layers 0-23`.
    """
    ordered = sorted(layers)
    if len(ordered) > 2 and ordered == list(range(ordered[0], ordered[-1] + 1)):
        return f"layers {ordered[0]}-{ordered[-1]}"
    return f"layer{'s' * (len(ordered) > 1)} {', '.join(map(str, ordered))}"


_LAYERS = re.compile(r"(\d{1,4})(?:-(\d{1,4}))?", re.ASCII)


_FORMS = "Count layers from 0: give 6 12, 6,12, 1-3, or the word all"


def parse_layers(words: Sequence[str]) -> tuple[int, ...]:
    """Parse `6 12`, `6,12`, `1-3` or any mixture into layers; `all` must be alone and gives ().

    Raises UsageError for anything else, and for nothing: an unset shell variable must not mean all
    layers. Negative layers are refused, because the plan and the output use numbers that mean the
    same in every model.
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
        raise UsageError(f"layer {part!r}: is not a layer or a range of layers. {_FORMS}")
    return range(first, last + 1)
