"""The names of taps elsewhere: TransformerLens hooks and Hugging Face modules.  If TransformerLens
has no hook with these values (docs/sites.md), we use our own name below `blocks.N`. The name of a
Hugging Face module means the module's output.
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
    """Return the hook's name, such as `blocks.12.hook_resid_post`.

    If there is no such hook, the last part is our own name of the site.
    """
    return f"blocks.{tap.layer}.{_HOOKS.get(tap.site, tap.site)}"


def tap_of_hook(name: str) -> Tap | None:
    """Return the tap that a hook or a module's output is; None if it is not a tap."""
    if match := _HOOK.fullmatch(name):
        sites = {_HOOKS.get(site, site): site for site in SITES}
        return Tap(int(match[1]), sites[match[2]]) if match[2] in sites else None
    if match := _MODULE.fullmatch(name):
        return Tap(int(match[1]), _MODULES[match[2]]) if match[2] in _MODULES else None
    return None
