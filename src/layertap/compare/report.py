"""Print a comparison as text for people, or as JSON for programs."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from layertap.compare.command import Comparison, Finding, rows_compared
from layertap.compare.diagnosis import Explanation
from layertap.core.table import table

_HEAD = ("array", "nearest", "median error", "worst", "cosine", "second nearest", "verdict")
_WORST = 3


def describe(comparison: Comparison) -> str:
    """Return one line per array, sentences about faults, and the worst tokens."""
    return "\n".join([*_opening(comparison), "", *_table(comparison), "", *_verdicts(comparison), *_worst(comparison)])


def to_json(comparison: Comparison) -> Mapping[str, Any]:
    """Return everything as JSON values, with the error of each token."""
    return {
        "dump": comparison.path,
        "kind": comparison.dump.kind,
        "model_path": comparison.facts.name,
        "sound": comparison.sound,
        "samples": [
            {"name": prompt.name, "token_ids": prompt.token_ids[: comparison.tokens].tolist()}
            for prompt in comparison.dump.prompts
        ],
        "remarks": list(comparison.dump.remarks),
        "arrays": [_array(finding) for finding in comparison.findings],
    }


def _opening(comparison: Comparison) -> Iterator[str]:
    prompts = comparison.dump.prompts
    tokens = sum(min(len(prompt), comparison.tokens) for prompt in prompts)
    samples = "1 sample" if len(prompts) == 1 else f"{len(prompts)} samples"
    yield f"{comparison.path}: {comparison.dump.kind}; {tokens} tokens of {samples} are compared"
    yield f"truth: {comparison.facts.name} in float32, {comparison.facts.num_layers} layers"
    yield from comparison.dump.remarks


def _table(comparison: Comparison) -> Iterator[str]:
    yield table([_HEAD, *map(_row, comparison.findings)], left=(0, 1, 5, 6))
    yield "errors are relative and of one token: the distance from the truth, divided by the truth's length"


def _row(finding: Finding) -> tuple[str, ...]:
    fault = "FAULT" if finding.verdict.fault else "right"
    if finding.diagnosis is None:
        return finding.array.name, "-", "-", "-", "-", "-", fault
    best, second = finding.diagnosis.best, finding.diagnosis.second
    other = "-" if second is None else f"{second[1].short()} ({second[0]:.2g})"
    changed = "" if finding.diagnosis.explanation is None or best.change is None else ", changed"
    named = f"{best.candidate.short()}{changed}" if finding.diagnosis.explanation else f"{best.candidate.short()} (?)"
    return finding.array.name, named, f"{best.error:.2g}", f"{_largest(best):.2g}", f"{best.cosine:.6f}", other, fault


def _largest(best: Explanation) -> float:
    errors = np.concatenate(best.errors)
    return float("nan") if not errors.size or np.isnan(errors).all() else float(np.nanmax(errors))


def _verdicts(comparison: Comparison) -> Iterator[str]:
    """Yield the verdicts; arrays with the same verdict share a line."""
    groups: dict[tuple[bool, str], list[str]] = {}
    for finding in comparison.findings:
        groups.setdefault((finding.verdict.fault, finding.verdict.words), []).append(finding.array.name)
    for (fault, words), names in groups.items():
        yield f"{', '.join(names)}: {'' if fault else 'right, '}{words}"


def _worst(comparison: Comparison) -> Iterator[str]:
    looked = [
        finding for finding in comparison.findings if finding.diagnosis is not None and rows_compared(finding.diagnosis)
    ]
    if not looked:
        return
    yield ""
    rows = [("array", "worst tokens: sample, position, text, error")]
    for finding in looked:
        assert finding.diagnosis is not None
        rows.append((finding.array.name, "; ".join(_tokens(comparison, finding.diagnosis.best))))
    yield table(rows, left=(0, 1))


def _tokens(comparison: Comparison, best: Explanation) -> Iterator[str]:
    """Yield the tokens with the largest errors."""
    errors = [(float(error), prompt, at) for prompt, each in enumerate(best.errors) for at, error in enumerate(each)]
    for error, prompt, at in sorted(errors, key=lambda entry: -np.nan_to_num(entry[0], nan=np.inf))[:_WORST]:
        row = int(best.alignment.pairs[prompt][0][at])
        texts = comparison.texts[prompt]
        text = repr(texts[row]) if row < len(texts) else "(no token)"
        yield f"{comparison.dump.prompts[prompt].name}, {row}, {text}, {error:.2g}"


def _array(finding: Finding) -> dict[str, Any]:
    told: dict[str, Any] = {
        "name": finding.array.name,
        "dtype": finding.array.dtype,
        "width": finding.array.width,
        "claimed": finding.array.claim.words if finding.array.claim else None,
        "fault": finding.verdict.fault,
        "verdict": finding.verdict.words,
    }
    if finding.diagnosis is None:
        return told
    best, second = finding.diagnosis.best, finding.diagnosis.second
    return told | {
        "explained": finding.diagnosis.explanation is not None,
        "nearest": {**best.candidate.tap._asdict(), "final_norm": best.candidate.normed},
        "faults": list(best.faults),
        "values_are": best.rounding.grid,
        "rounding": best.rounding.level,
        "median_error": best.error,
        "worst_error": _largest(best),
        "cosine": best.cosine,
        "second": None
        if second is None
        else {**second[1].tap._asdict(), "final_norm": second[1].normed, "error": second[0]},
        "rows": [rows.tolist() for rows, _ in best.alignment.pairs],
        "errors": [[float(f"{error:.3g}") for error in each] for each in best.errors],
    }
