"""Where a run continues: `checkpoint_worker_{id}.json`, checked against the manifest.

The manifest beside the shards is the truth, because it is replaced in the same moment as the shards
appear. The checkpoint repeats its position after each commit, for anyone who watches the run. It
also guards against the one loss that the manifest cannot see: its own. If the checkpoint knows of
more shards than the output folder holds, the run stops instead of silently starting over. If the
output goes only to a bucket, the checkpoint is there too.
"""

import json
import operator
from dataclasses import asdict, dataclass
from pathlib import Path

from layertap.core.strict_json import dump_json
from layertap.errors import DamageError, RunMismatchError, StorageError, UsageError
from layertap.objects import open_store
from layertap.objects.files import atomic_write
from layertap.pipeline.windows import Position
from layertap.shards.manifest import FILE_NAME, Manifest
from layertap.shards.manifest_files import load_manifest
from layertap.shards.publisher import Publisher, files_of


@dataclass(frozen=True)
class Checkpoint:
    """The content of `checkpoint_worker_{id}.json`."""

    fingerprint: str
    output_dir: str
    shards: int
    samples: int
    tokens: int
    complete: bool
    progress: dict[str, object]


def checkpoint_path(folder: Path, worker: str) -> Path:
    """The checkpoint's file for this worker, or for one of its hosts (`Hosts.name`)."""
    return folder / checkpoint_name(worker)


def checkpoint_name(worker: str) -> str:
    """The checkpoint's name, in its folder or beside the shards in a bucket."""
    return f"checkpoint_worker_{worker}.json"


def write_checkpoint(path: Path, output_dir: Path, manifest: Manifest) -> None:
    """Repeat the manifest's position at `path`, atomically."""
    with atomic_write(path) as file:
        file.write(checkpoint_bytes(str(output_dir.resolve()), manifest))


def checkpoint_bytes(output_dir: str, manifest: Manifest) -> bytes:
    """A checkpoint of the output in `output_dir`, a folder or a URL."""
    checkpoint = Checkpoint(
        fingerprint=manifest.fingerprint,
        output_dir=output_dir,
        shards=len(manifest.shards),
        samples=manifest.samples,
        tokens=manifest.tokens,
        complete=manifest.complete,
        progress=dict(manifest.progress),
    )
    return (dump_json(asdict(checkpoint), indent=2) + "\n").encode()


def read_checkpoint(path: Path) -> Checkpoint | None:
    """The checkpoint at `path`, or None; raises DamageError if it is not one."""
    try:
        return parse_checkpoint(path.read_bytes(), path)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror or error}; give another --checkpoint_dir") from error


def parse_checkpoint(data: bytes, place: object) -> Checkpoint:
    """The checkpoint found at `place`; raises DamageError if it is not one."""
    try:
        checkpoint = Checkpoint(**json.loads(data))
        operator.index(checkpoint.shards)
        return checkpoint
    except (ValueError, TypeError) as error:
        raise DamageError(
            f"{place}: is not a checkpoint ({error}); the output folder alone is enough: remove it"
        ) from error


def resume(output_dir: Path, fresh: Manifest, checkpoint: Path | None, held: int = 0) -> tuple[Manifest, Position]:
    """The manifest to continue from (`fresh` if the folder holds none) and the next window's
    position.

    The files of the first `held` shards are elsewhere, and need not be here.

    Raises RunMismatchError if the folder holds another run, or any run while `checkpoint` is None
    (`--no_checkpointing`); StorageError if committed shards are gone.
    """
    found = load_manifest(open_store(str(output_dir)))
    if checkpoint is not None:
        known = read_checkpoint(checkpoint)
        if known is not None and known.output_dir == str(output_dir.resolve()):
            _require_all_shards(output_dir, found, known, checkpoint)
    if found is None:
        _require_no_shards(output_dir)
        return fresh, Position()
    _require_may_go_on(output_dir, found, fresh, checkpointing=checkpoint is not None)
    _require_files(output_dir, found, held)
    return found, position_of(found)


def resume_at(publisher: Publisher, fresh: Manifest) -> tuple[Manifest, Position]:
    """The same for output that is only in a bucket, with its checkpoint beside it.

    Raises DamageError if a shard that its manifest names is missing, or is another one.
    """
    url, found = publisher.url, publisher.found
    if publisher.checkpoint is not None:
        known = parse_checkpoint(publisher.checkpoint, f"{url}: its checkpoint")
        _require_all_shards(url, found, known, f"the checkpoint in {url}")
    if found is None:
        return fresh, Position()
    _require_may_go_on(url, found, fresh, checkpointing=publisher.checkpointing)
    for file in files_of(found):
        if not publisher.holds(file):
            raise DamageError(
                f"{url}/{file.path}: is gone, or is not what {FILE_NAME} says; restore it, or give another --output_dir"
            )
    return found, position_of(found)


def position_of(manifest: Manifest) -> Position:
    """Where a run with this manifest continues."""
    return Position.from_json(manifest.progress) if manifest.progress else Position()


def _require_may_go_on(place: object, found: Manifest, fresh: Manifest, *, checkpointing: bool) -> None:
    """Raise RunMismatchError if another run is at `place`, or one that must not continue."""
    found.require_same_run(fresh, place)
    if not checkpointing and (found.shards or found.complete):
        raise RunMismatchError(
            f"{place} already holds {len(found.shards)} shards, and --no_checkpointing neither resumes nor"
            " overwrites; leave it out to continue, or give another --output_dir"
        )


def _require_all_shards(place: object, found: Manifest | None, known: Checkpoint, checkpoint: object) -> None:
    """Raise StorageError if the checkpoint knows of more shards than the manifest names."""
    held = 0 if found is None else len(found.shards)
    if known.shards > held:
        raise StorageError(
            f"{checkpoint} knows of {known.shards} shards in {place}, where {FILE_NAME} names {held};"
            " restore the folder, or remove that checkpoint to begin again"
        )


def _require_no_shards(output_dir: Path) -> None:
    """A run killed before its first commit leaves files of one shard at most; more means that the
    manifest is lost.
    """
    numbers = {path.name.split(".")[0] for path in output_dir.rglob("shard_*")}
    if len(numbers) > 1:
        raise StorageError(
            f"{output_dir} holds {len(numbers)} shards but no {FILE_NAME}; restore it, or give another --output_dir"
        )


def _require_files(output_dir: Path, manifest: Manifest, held: int) -> None:
    for shard in manifest.shards[held:]:
        for file in shard.files:
            path = output_dir / file.path
            size = path.stat().st_size if path.exists() else None
            if size != file.bytes:
                state = "is gone" if size is None else f"has {size} bytes"
                raise DamageError(
                    f"{path}: {state}, but {FILE_NAME} says {file.bytes}; restore it, or give another --output_dir"
                )
