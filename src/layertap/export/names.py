"""What a tap is called in the formats of others.

SAELens looks for a column by the name of TransformerLens' hook (core/hooks.py). It reads any
column, as long as its `hook_name` is the same. The folders of `--to memmap` are named as the
ActivationCache names them: a submodule, and whether its input or its output was read.
"""

from collections.abc import Mapping

from layertap.core.taps import Site, Tap

_SUBMODULES: Mapping[Site, str] = {
    "residual": "layer_{}_out",
    "residual_in": "layer_{}_in",
    "residual_mid": "layer_{}_mid_out",
    "attn": "layer_{}_attn_out",
    "attn_in": "layer_{}_attn_in",
    "heads": "layer_{}_heads_out",
    "mlp": "layer_{}_mlp_out",
    "mlp_in": "layer_{}_mlp_in",
    "neurons": "layer_{}_neurons_out",
}


def submodule_name(tap: Tap) -> str:
    """`layer_12_out`: the folder of a tap."""
    return _SUBMODULES[tap.site].format(tap.layer)
