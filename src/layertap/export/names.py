"""What a tap is called in the formats of others.

SAELens looks for a column by the name of TransformerLens' hook. Where TransformerLens has no hook
with these values (docs/sites.md), the column has our own name: SAELens reads any column, as long as
its `hook_name` is the same. The folders of `--to memmap` are named as the ActivationCache names
them: a submodule, and whether its input or its output was read.
"""

from collections.abc import Mapping

from layertap.core.taps import Site, Tap

_HOOKS: Mapping[Site, str] = {
    "residual": "hook_resid_post",
    "residual_in": "hook_resid_pre",
    "residual_mid": "hook_resid_mid",
    "attn": "hook_attn_out",
    "heads": "attn.hook_z",
    "mlp": "hook_mlp_out",
    "neurons": "mlp.hook_post",
}
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


def hook_name(tap: Tap) -> str:
    """`blocks.12.hook_resid_post`, or our own name below `blocks.12` where there is no such
    hook.
    """
    return f"blocks.{tap.layer}.{_HOOKS.get(tap.site, tap.site)}"


def submodule_name(tap: Tap) -> str:
    """`layer_12_out`: the folder of a tap."""
    return _SUBMODULES[tap.site].format(tap.layer)
