"""What a page says about the whole run: its settings, its norms by layer, and its tokens' roles.

Norms come from the statistics beside the shards. The shares of sinks, of the prefix and of roles
take a pass over norms and labels, which safetensors store separately. For pickles they are left
out, and the page says so.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from layertap.core.columns import ROLES
from layertap.core.taps import Tap
from layertap.objects.base import ObjectStore
from layertap.reader.dataset import ActivationDataset
from layertap.shards.decode import open_shard
from layertap.shards.manifest import Manifest
from layertap.shards.shares import measure_shares, norms_are_quick
from layertap.shards.statistics import TapStatistics

Runs = Sequence[tuple[ObjectStore, Manifest]]


def describe_run(
    dataset: ActivationDataset,
    taps: Sequence[Tap],
    statistics: Mapping[Tap, TapStatistics],
    show: Callable[[int, int], None],
) -> dict[str, Any]:
    """Return what the page's first tab shows, as JSON."""
    runs = dataset.runs
    manifest = runs[0][1]
    quick = all(norms_are_quick(own) for _, own in runs)
    shares = measure_shares(runs, show) if quick else None
    return {
        "path": dataset.path,
        "facts": _facts(dataset, manifest, len(runs)),
        "taps": [_tap(tap, dataset, statistics.get(tap)) for tap in taps],
        "shares": None
        if shares is None
        else {
            "prefix_tokens": shares.prefix_tokens,
            "sinks": [shares.sinks[tap] for tap in taps],
            "prefix": [shares.prefix[tap] for tap in taps],
        },
        "roles": _roles(runs) if quick else None,
        "certificate": _certificate(manifest, taps),
    }


def _facts(dataset: ActivationDataset, manifest: Manifest, folders: int) -> list[tuple[str, str]]:
    backend = manifest.identity.get("backend", {})
    facts = [
        ("model", dataset.model_path),
        ("kind of model", manifest.model_type),
        ("samples", f"{len(dataset):,}"),
        ("tokens", f"{dataset.tokens:,}"),
        ("state", "complete" if dataset.complete else "not complete yet"),
        ("stored as", " and ".join(dataset.storage_dtypes)),
        ("computed in", str(manifest.identity.get("model", {}).get("compute_dtype", ""))),
        ("computed on", str(backend.get("device", ""))),
        ("dataset", str(manifest.config.get("dataset_path") or manifest.config.get("dataset_name") or "")),
        ("tokens kept", ", ".join(manifest.keep_tokens)),
        ("folders", str(folders)),
    ]
    return [(name, value) for name, value in facts if value]


def _tap(tap: Tap, dataset: ActivationDataset, statistics: TapStatistics | None) -> dict[str, Any]:
    told: dict[str, Any] = {"layer": tap.layer, "site": tap.site, "width": dataset.taps[tap]}
    if statistics is None or not statistics.count:
        return told | {"mean_norm": None, "max_norm": None, "mean_over_std": None}
    over = float(statistics.mean_over_std)
    return told | {
        "mean_norm": _finite(statistics.mean_norm),
        "max_norm": _finite(statistics.max_norm),
        "mean_over_std": _finite(over),
    }


def _finite(number: float) -> float | None:
    return float(number) if np.isfinite(number) else None


def _roles(runs: Runs) -> dict[str, int] | None:
    """Count the tokens of each role; None where a run stored no labels."""
    if any("role" not in manifest.columns for _, manifest in runs):
        return None
    counts = np.zeros(256, np.int64)
    for store, manifest in runs:
        for entry in manifest.shards:
            counts += np.bincount(open_shard(store, manifest, entry).column("role", 0, entry.tokens), minlength=256)
    return {ROLES[role] if role < len(ROLES) else str(role): int(counts[role]) for role in np.flatnonzero(counts)}


def _certificate(manifest: Manifest, taps: Sequence[Tap]) -> dict[str, Any] | None:
    """Return how close the run is to float32, at these taps."""
    told = manifest.certificate
    if not told:
        return None
    names = ("cosine_min", "relative_error_mean", "relative_error_max")
    rows = {Tap(row["layer"], row["site"]): [row.get(name) for name in names] for row in told["taps"]}
    return {"prompts": told["prompts"], "tokens": told["tokens"], "taps": [rows.get(tap) for tap in taps]}
