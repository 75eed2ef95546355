"""Which output folders a dataset is made of, and that they belong together.

Every folder below the path that has a `metadata.json` is one source: a worker's, a host's, or an
attempt's at a shard of a claimed dataset. They must hold the same layers, sites and width of one
model, computed in one precision. Format and storage dtype may differ. The order of samples is the
order of the folders' names, then that of their shards.

Of a claimed dataset, several attempts at a shard may lie there, and a folder does not tell whether
it is the one that counts. The done-manifests do, in the sharded dataset's own folder
(docs/fleet.md). Without them, a shard that stands there twice, or is not complete, is refused
rather than guessed at.
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
    """Its path below the dataset's, with `/`; empty where it is the dataset itself."""
    manifest: Manifest
    store: ObjectStore
    """Its files."""

    @property
    def part(self) -> str | None:
        """Which shard of a claimed dataset it is an attempt at, if it is one."""
        part = self.manifest.identity.get("dataset", {}).get("part")
        return None if part is None else str(part)


def find_sources(store: ObjectStore, sharded_dataset: str | None) -> tuple[Source, ...]:
    """The output folders below a store's URL that count; raises UsageError where there is none."""
    found = tuple(_found(store))
    if sharded_dataset is not None:
        found = tuple(_committed(store, found, sharded_dataset))
    else:
        _require_plain_parts(store, found)
    if not found:
        raise UsageError(f"{store.url}: no {FILE_NAME} there or below; it is not the output of a run")
    _require_compatible(store, found)
    return found


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
        share = json.dumps(source.manifest.identity["dataset"], sort_keys=True)  # hosts of a slice have one each
        twice, complete = seen.get(share), source.manifest.complete
        if twice is not None or not complete:
            what = f"{source.name}: is not complete" if not complete else f"{twice} and {source.name}: both are there"
            raise UsageError(
                f"{store.url}: {what}, as attempts at dataset shard {source.part}. Which attempt counts is told by the"
                " done-manifests; give sharded_dataset=, the folder or URL of the sharded dataset"
            )
        seen[share] = source.name


def _committed(store: ObjectStore, sources: Sequence[Source], url: str) -> Iterator[Source]:
    """The attempts that done-manifests name, in order; raises DamageError where one of them is not
    there.
    """
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
    """The shard, the attempt and what came of it; one for each host of a slice."""
    found = shards.read(name)
    try:
        done = json.loads(b"" if found is None else found.data)
        return [
            (done["shard"], done["attempt"], {key: outcome[key] for key in ("fingerprint", "samples", "output")})
            for outcome in done.get("hosts") or [done]
        ]
    except (ValueError, KeyError, TypeError) as error:
        raise DamageError(f"{shards.url}/{name}: is no done-manifest ({error!r}); reset the shard") from error


def _require_compatible(store: ObjectStore, sources: Sequence[Source]) -> None:
    first = sources[0]
    for source in sources[1:]:
        pairs = zip(_common(first.manifest).items(), _common(source.manifest).values(), strict=True)
        differing = [name for (name, there), here in pairs if there != here]
        if differing:
            raise UsageError(
                f"{store.url}: {first.name or '.'} and {source.name} differ in {', '.join(differing)}; they cannot be"
                " read as one dataset, open them one by one"
            )


def _common(manifest: Manifest) -> dict[str, object]:
    return {
        "layers": manifest.layers,
        "sites": sorted(manifest.sites),
        "widths": sorted(manifest.taps.items()),
        "model": manifest.identity.get("model"),
    }
