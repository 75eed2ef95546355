"""The names of taps in other formats.

SAELens looks for a column with the name of a TransformerLens hook (core/hooks.py). It reads any
column whose name equals its `hook_name`. The folders of `--to memmap` are named as in
ActivationCache: a submodule, and whether its input or its output was read.
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
    """Return the folder of a tap, such as `layer_12_out`."""
    return _SUBMODULES[tap.site].format(tap.layer)
