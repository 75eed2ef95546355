"""`layertap verify`: check one run, all runs below a place, or a sharded dataset.

Each done-manifest of a sharded dataset names one attempt's folder (one per host if there are
several), with the checksum of its manifest. That folder is checked like any run (check/verify.py),
and against the done-manifest and `dataset.json`. So the dataset has every sample once, whoever
extracted it. Attempts that no done-manifest names do not count and are not read. An unfinished
shard is not damage.
"""

from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Any

from layertap.check.places import PlacesReport, find_outputs, verify_places
from layertap.check.verify import OnRead, VerifyReport, verify_folder
from layertap.config.fleet import VerifyConfig
from layertap.errors import DamageError
from layertap.fleet.claims import done_name
from layertap.fleet.sharded import MANIFEST as DATASET
from layertap.fleet.sharded import DatasetShard, read_dataset
from layertap.fleet.status import read_done
from layertap.objects import open_store
from layertap.objects.base import ObjectStore
from layertap.shards.manifest import FILE_NAME

_BELOW_ROOT = 3  # tpu_0/shard_00003/{attempt}


@dataclass(frozen=True)
class _Expected:
    """What `dataset.json` and a done-manifest say about an output folder."""

    shard: DatasetShard
    crc32c: str
    """The checksum of its manifest."""


def verify_at(config: VerifyConfig, on_read: OnRead) -> VerifyReport | PlacesReport:
    """Check the output at `config.path`; raises UsageError if there is none."""
    dataset, root = (config.path, None) if config.sharded_dataset is None else (config.sharded_dataset, config.path)
    if root is None:
        with closing(open_store(config.path)) as store:
            if store.stat(FILE_NAME) is not None:
                return verify_folder(store, on_read)
            if store.stat(DATASET) is None:
                outputs = [f"{config.path.rstrip('/')}/{name}" for name in find_outputs(store)]
                return verify_places(store.url, outputs, on_read)
    with closing(open_store(dataset)) as store:
        return verify_dataset(store, on_read, root)


def verify_dataset(
    store: ObjectStore, on_read: OnRead = lambda _done, _total: None, root: str | None = None
) -> PlacesReport:
    """Check the outputs of the sharded dataset in `store`, in the recorded places or below `root`.

    Raises UsageError if `store` holds no sharded dataset.
    """
    findings: list[str] = []
    unfinished: list[str] = []
    expected: dict[str, _Expected] = {}
    for shard in read_dataset(store).shards:
        try:
            done = read_done(store, shard.name)
            expected |= {} if done is None else _outputs(shard, done, f"{store.url}/{done_name(shard.name)}", root)
        except DamageError as error:
            findings.append(str(error))
            continue
        if done is None:
            unfinished.append(f"{shard.name}: is not finished yet")
    report = verify_places(store.url, list(expected), on_read)
    for output, checked in report.reports.items():
        findings += (f"{output}: {finding}" for finding in _differences(checked, expected[output]))
    return replace(report, findings=(*findings, *report.findings), unfinished=tuple(unfinished))


def _outputs(shard: DatasetShard, done: Mapping[str, Any], name: str, root: str | None) -> dict[str, _Expected]:
    """Return the folders that a done-manifest names, one per host; DamageError if it is damaged."""
    try:
        return {
            _place(outcome["output"], root): _Expected(shard, str(outcome["manifest"]["crc32c"]))
            for outcome in done.get("hosts") or [done]
        }
    except (KeyError, TypeError, AttributeError) as error:
        raise DamageError(f"{name}: is not a valid done-manifest ({error!r}); reset the shard") from error


def _place(output: str, root: str | None) -> str:
    return output if root is None else "/".join((root.rstrip("/"), *PurePosixPath(output).parts[-_BELOW_ROOT:]))


def _differences(report: VerifyReport, expected: _Expected) -> Iterator[str]:
    manifest = report.manifest
    shard, dataset = expected.shard, manifest.identity.get("dataset", {})
    if report.head_crc32c != expected.crc32c:
        yield f"its {FILE_NAME} is not the one that {done_name(shard.name)} names"
    if not manifest.complete:
        yield f"is not complete, though {done_name(shard.name)} names it"
    if dataset.get("part") != shard.name:
        yield f"belongs to {dataset.get('part') or 'no shard'}, not to {shard.name}"
        return
    predictions = manifest.identity["prompts"]["predictions_per_task"]
    per_text = manifest.identity["prompts"].get("numbers_per_text", 1)
    first = shard.first_sample(predictions, per_text)
    last = first + shard.samples(predictions, per_text)
    span = dataset.get("first_sample_idx"), manifest.progress.get("sample_idx")
    if manifest.complete and span != (first, last):
        yield f"goes from sample {span[0]} up to {span[1]}, but {shard.name} is from {first} up to {last}"
