"""Where an activation is read: a tap is one (layer, site).

    site       what it is                                                         Hugging Face module
    residual   the layer's output, both residual adds done, before the final norm  model.layers.N
    mlp        the MLP's output, before its residual add                           model.layers.N.mlp
    attn       the attention's output after o_proj, before its residual add        model.layers.N.self_attn

Layers are counted from 0. Beware of `hidden_states[N + 1]` as a reference for `residual`: for the last layer
transformers puts the *final norm's* output there, not the layer's.
"""

from typing import Literal, NamedTuple

Site = Literal["residual", "mlp", "attn"]
SITES: tuple[Site, ...] = ("residual", "mlp", "attn")


class Tap(NamedTuple):
    """One (layer, site); hashable, so that a compiled program can be chosen by its taps."""

    layer: int
    site: Site
