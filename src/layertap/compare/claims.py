"""Read what the name of an array claims.

We know the names of our own files, of TransformerLens hooks, of Hugging Face modules, and of
`hidden_states` with its number. That number counts the layers that were run, so `hidden_states.13`
equals `residual` of layer 12. A name with a layer but no site fits any site of that layer. A name
that says nothing claims nothing, so the array cannot contradict its name.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from layertap.compare.candidates import EMBEDDINGS, Candidate, ModelFacts, one_name
from layertap.core.taps import SITES, Site, Tap

_LENS: dict[str, Site] = {
    "hook_resid_pre": "residual_in",
    "hook_resid_mid": "residual_mid",
    "hook_resid_post": "residual",
    "hook_attn_out": "attn",
    "hook_mlp_out": "mlp",
    "attn.hook_z": "heads",
    "mlp.hook_post": "neurons",
}
_MODULES: dict[str, Site] = {
    "": "residual",
    ".self_attn": "attn",
    ".mlp": "mlp",
    ".input_layernorm": "attn_in",
    ".post_attention_layernorm": "mlp_in",
}
_SHORT: dict[str, Site] = {"pre": "residual_in", "mid": "residual_mid", "post": "residual", "": "residual"}


@dataclass(frozen=True)
class Claim:
    """What a name claims about an array; any of `candidates` makes it true."""

    candidates: frozenset[Candidate]
    words: str


def claim_of(name: str, facts: ModelFacts) -> Claim | None:
    """Return what `name` claims, if anything."""
    return next((claim for rule, read in _RULES for claim in _read(rule, read, name, facts)), None)


def claim_of_slice(name: str, number: int, slices: int, facts: ModelFacts) -> Claim | None:
    """Return the claim for slice `number` of an array with all `slices` layers.

    One slice more than layers means transformers' `hidden_states`, embeddings first. If there are
    as many slices as layers, the first or the last of these may be missing, so only another name
    decides.
    """
    if slices == facts.num_layers + 1:
        return _hidden_state(number, facts)
    if slices != facts.num_layers or "hidden" in name:
        return None
    return claim_of(f"{name}.{number}", facts)


def _read(
    rule: re.Pattern[str], read: "Callable[[re.Match[str], ModelFacts], Claim | None]", name: str, facts: ModelFacts
) -> Iterator[Claim]:
    found = rule.search(name)
    claim = None if found is None else read(found, facts)
    if claim is not None:
        yield claim


def _tap(tap: Tap) -> Claim:
    return Claim(frozenset({Candidate(one_name(tap))}), Candidate(tap).describe())


def _hidden_state(number: int, facts: ModelFacts) -> Claim:
    tap = EMBEDDINGS if number == 0 else Tap(number - 1, "residual")
    last = {Candidate(tap, normed=True)} if number == facts.num_layers else set()
    return Claim(frozenset({Candidate(tap)} | last), f"`hidden_states[{number}]`, {Candidate(tap).describe()}")


def _layer(number: int) -> Claim:
    return Claim(frozenset(Candidate(one_name(Tap(number, site))) for site in _OF_A_LAYER), f"layer {number}")


_OF_A_LAYER = tuple(site for site in SITES if site != "residual_in")


def _lens(match: re.Match[str], _: ModelFacts) -> Claim | None:
    return _tap(Tap(int(match[1]), _LENS[match[2]])) if match[2] in _LENS else _layer(int(match[1]))


def _module(match: re.Match[str], facts: ModelFacts) -> Claim | None:
    del facts
    return _tap(Tap(int(match[1]), _MODULES[match[2]])) if match[2] in _MODULES else _layer(int(match[1]))


_RULES: tuple[tuple[re.Pattern[str], Callable[[re.Match[str], ModelFacts], Claim | None]], ...] = (
    (re.compile(rf"(?:^|[^a-z_])({'|'.join(SITES)})[._](\d+)$"), lambda m, _: _tap(Tap(int(m[2]), m[1]))),  # type: ignore[arg-type]
    (re.compile(r"blocks\.(\d+)\.([\w.]+)$"), _lens),
    (re.compile(r"(?:^|\.)layers\.(\d+)((?:\.\w+)*?)(?:\.output)?$"), _module),
    (re.compile(r"hidden_states?[._\-\[/]?(\d+)\]?$"), lambda m, facts: _hidden_state(int(m[1]), facts)),
    (
        re.compile(r"resid(?:ual)?(?:_stream)?_?(pre|mid|post|)[._\-]?(\d+)$"),
        lambda m, _: _tap(Tap(int(m[2]), _SHORT[m[1]])),
    ),
    (re.compile(r"layers?[._\-\[/]?(\d+)\]?(?:\D|$)", re.IGNORECASE), lambda m, _: _layer(int(m[1]))),
)
