"""Find the output folders of a dataset, and check that they belong together.

Every folder below the path with a `metadata.json` is one source: the output of a worker, a host, or
an attempt at a shard of a claimed dataset. All must have the same layers, sites and widths of one
model, computed in one precision. Format and storage dtype may differ. Samples are ordered by the
names of the folders, then by shard.

A claimed dataset may have several attempts at a shard, and a folder does not show whether it
counts. The done-manifests in the sharded dataset's own folder do (docs/fleet.md). Without them, a
shard that occurs twice or is incomplete is refused, because we do not guess.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from layertap.errors import DamageError, UsageError
from layertap.objects import open_store
from layertap.objects.base import ObjectStore
from layertap.shards.manifest import FILE_NAME, Manifest
from layertap.shards.manifest_files import load_manifest

_DONE = "done/"


@dataclass(frozen=True, eq=False)
class Source:
    """One output folder."""

    name: str
    """Its path below the dataset's, with `/`; empty if it is the dataset itself."""
    manifest: Manifest
    store: ObjectStore
    """Its files."""

    @property
    def part(self) -> str | None:
        """The shard of a claimed dataset that it is an attempt at; None otherwise."""
        part = self.manifest.identity.get("dataset", {}).get("part")
        return None if part is None else str(part)


def find_sources(store: ObjectStore, sharded_dataset: str | None) -> tuple[Source, ...]:
    """Find the output folders below a store's URL that count; raises UsageError if there is
    none.
    """
    found = tuple(_found(store))
    if sharded_dataset is not None:
        found = tuple(_committed(store, found, sharded_dataset))
    else:
        _require_plain_parts(store, found)
    if not found:
        raise UsageError(
            f"{store.url}: has no {FILE_NAME} there or below, so it is not the output of a run; check the path"
        )
    _require_compatible(store, found)
    return found


def require_prefix_flags(path: str, sources: Sequence[Source]) -> None:
    """Raise UsageError for runs that were stored before the prefix was flagged."""
    if any("share_prefix" not in source.manifest.identity.get("packing", {}) for source in sources):
        raise UsageError(
            f"{path}: a version of Layertap stored it that flagged no prefix, so to exclude it would leave nothing out;"
            " extract it again, or do not exclude 'prefix'"
        )


def _found(store: ObjectStore) -> Iterator[Source]:
    for info in store.list():
        path = PurePosixPath(info.name)
        if path.name == FILE_NAME:
            folder = "" if path.parent == PurePosixPath() else path.parent.as_posix()
            own = store.below(folder) if folder else store
            manifest = load_manifest(own)
            if manifest is not None:
                yield Source(folder, manifest, own)


def _require_plain_parts(store: ObjectStore, sources: Sequence[Source]) -> None:
    seen: dict[str, str] = {}
    for source in sources:
        if source.part is None:
            continue
        share = json.dumps(source.manifest.identity["dataset"], sort_keys=True)  # each host of a slice has one
        twice, complete = seen.get(share), source.manifest.complete
        if twice is not None or not complete:
            what = f"{source.name}: is incomplete" if not complete else f"both {twice} and {source.name} exist"
            raise UsageError(
                f"{store.url}: {what}, as attempts at dataset shard {source.part}. The done-manifests record which"
                " attempt counts; give sharded_dataset=, the folder or URL of the sharded dataset"
            )
        seen[share] = source.name


def _committed(store: ObjectStore, sources: Sequence[Source], url: str) -> Iterator[Source]:
    """Yield the attempts that done-manifests name, in order; DamageError if one is missing."""
    attempts = {
        (source.part, PurePosixPath(source.name).name, source.manifest.fingerprint): source
        for source in sources
        if source.part
    }
    with closing(open_store(url)) as shards:
        for info in shards.list(_DONE):
            for shard, attempt, outcome in _outcomes(shards, info.name):
                source = attempts.get((shard, attempt, outcome["fingerprint"]))
                if source is None or source.manifest.samples != outcome["samples"]:
                    held = "lacks" if source is None else f"has {source.manifest.samples} samples of"
                    raise DamageError(
                        f"{store.url}: {held} the attempt {attempt} at dataset shard {shard} that {url}/{info.name}"
                        f" names; it was written to {outcome['output']}, with {outcome['samples']} samples"
                    )
                yield source


def _outcomes(shards: ObjectStore, name: str) -> list[tuple[str, str, Mapping[str, Any]]]:
    """Return shard, attempt and outcome, once for each host of a slice."""
    found = shards.read(name)
    try:
        done = json.loads(b"" if found is None else found.data)
        return [
            (done["shard"], done["attempt"], {key: outcome[key] for key in ("fingerprint", "samples", "output")})
            for outcome in done.get("hosts") or [done]
        ]
    except (ValueError, KeyError, TypeError) as error:
        raise DamageError(f"{shards.url}/{name}: is not a valid done-manifest ({error!r}); reset the shard") from error


def _require_compatible(store: ObjectStore, sources: Sequence[Source]) -> None:
    first = sources[0]
    for source in sources[1:]:
        pairs = zip(_common(first.manifest).items(), _common(source.manifest).values(), strict=True)
        differing = [name for (name, there), here in pairs if there != here]
        if differing:
            raise UsageError(
                f"{store.url}: {first.name or '.'} and {source.name} differ in {', '.join(differing)}, so they cannot"
                " be read as one dataset; open them separately"
            )


def _common(manifest: Manifest) -> dict[str, object]:
    return {
        "layers": manifest.layers,
        "sites": sorted(manifest.sites),
        "widths": sorted(manifest.taps.items()),
        "model": manifest.identity.get("model"),
    }
