"""What others call our taps: TransformerLens' hooks, and modules of Hugging Face.

Where TransformerLens has no hook with these values (docs/sites.md), our own name stands below
`blocks.N`. A module of Hugging Face means its output.
"""

import re
from collections.abc import Mapping

from layertap.core.taps import SITES, Site, Tap

_HOOKS: Mapping[Site, str] = {
    "residual": "hook_resid_post",
    "residual_in": "hook_resid_pre",
    "residual_mid": "hook_resid_mid",
    "attn": "hook_attn_out",
    "heads": "attn.hook_z",
    "mlp": "hook_mlp_out",
    "neurons": "mlp.hook_post",
}
_MODULES: Mapping[str, Site] = {"": "residual", ".self_attn": "attn", ".mlp": "mlp"}
_HOOK = re.compile(r"blocks\.(\d{1,4})\.(.+)", re.ASCII)
_MODULE = re.compile(r"(?:model\.)?layers\.(\d{1,4})(.*)", re.ASCII)


def hook_name(tap: Tap) -> str:
    """`blocks.12.hook_resid_post`, or our own name below `blocks.12` where there is no such
    hook.
    """
    return f"blocks.{tap.layer}.{_HOOKS.get(tap.site, tap.site)}"


def tap_of_hook(name: str) -> Tap | None:
    """The tap that a hook, or a module's output, is; None where it is none of ours."""
    if match := _HOOK.fullmatch(name):
        sites = {_HOOKS.get(site, site): site for site in SITES}
        return Tap(int(match[1]), sites[match[2]]) if match[2] in sites else None
    if match := _MODULE.fullmatch(name):
        return Tap(int(match[1]), _MODULES[match[2]]) if match[2] in _MODULES else None
    return None
