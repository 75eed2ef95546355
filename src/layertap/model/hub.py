"""Where to find what `--model_path` and `--adapter` name: a folder, or a repository of the Hub.

`huggingface_hub` fetches a repository into its ordinary cache. `NAME@REVISION` names a branch, a
tag or a commit; `--revision` does the same for the model. You can also give the folder of a
repository in that cache (`models--org--name`) as it is: its `refs` say which commit counts.
"""

import errno
import os
import re
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from layertap.errors import ModelError

_MAIN = "main"
_HUB_ID = re.compile(r"(\w[\w.-]*/\w[\w.-]*)(?:@([\w][\w./-]*))?")

# Connection errors belong to huggingface_hub's HTTP library, which changes over time.
_HTTP_ERROR: type[Exception] = HfHubHTTPError.__bases__[0]


@dataclass(frozen=True)
class Place:
    """A folder with files of a checkpoint or an adapter."""

    folder: Path
    hub_id: str | None
    """The repository to fetch further files from; None if the folder has all it needs."""


def find(flag: str, name: str, files: list[str], revision: str | None = None) -> Place:
    """The folder of this name, or the newest commit of this revision with those of `files` that
    exist.

    Raises ModelError, naming `flag`, if neither exists, access is denied, or the download fails.
    """
    path = os.path.expanduser(name)  # os.path returns False where pathlib raises: an unknown user
    _require_permission(flag, name, path)
    if os.path.isdir(path):
        return Place(_local(flag, Path(path), revision), None)
    match = _HUB_ID.fullmatch(name)
    if os.path.exists(path) or match is None:
        raise ModelError(
            f"{flag} {name}: neither a folder nor a Hub id such as Qwen/Qwen2.5-0.5B, or Qwen/Qwen2.5-0.5B@REVISION"
        )
    if revision is not None and match[2] not in (None, revision):
        raise ModelError(f"{flag} {name} and --revision {revision} contradict each other; give one of the two")
    return Place(download(flag, match[1], files, revision or match[2]), match[1])


def download(flag: str, hub_id: str, files: list[str], revision: str | None = None) -> Path:
    """The cached folder of one commit (by default the latest), with those of these files that
    exist.

    Raises ModelError, naming `flag`, if it cannot be fetched.
    """
    given = f"{flag} {hub_id}" if revision is None else f"{flag} {hub_id}@{revision}"
    try:
        return Path(snapshot_download(hub_id, revision=revision, allow_patterns=files))
    except GatedRepoError as error:
        raise ModelError(
            f"{given}: its owner wants to be asked: accept the terms on the model's page of the Hugging"
            " Face Hub, then log in with `hf auth login`"
        ) from error
    except RevisionNotFoundError as error:
        raise ModelError(f"{given}: the model has no branch, tag or commit of this name on the Hub") from error
    except RepositoryNotFoundError as error:
        raise ModelError(
            f"{given}: no such folder here, and the Hugging Face Hub has no such model"
            " (or it is private: log in with `hf auth login`)"
        ) from error
    except (OSError, ValueError, RuntimeError, _HTTP_ERROR) as error:  # hf_xet raises RuntimeError for broken transfers
        raise ModelError(
            f"{given}: no such folder here, and {_named(files)} could not be fetched from the Hugging Face Hub."
            f" Without a network, give the folder of a checkpoint downloaded elsewhere. The cause: {error}"
        ) from error


def _named(files: list[str]) -> str:
    """The first three, and how many more there are."""
    more = len(files) - 3
    return ", ".join(files[:3]) + (f" and {more} more files" if more > 1 else f", {files[3]}" if more == 1 else "")


def _require_permission(flag: str, name: str, path: str) -> None:
    try:
        os.stat(path)
    except OSError as error:
        forbidden = error.errno in (errno.EACCES, errno.EPERM)
    else:
        forbidden = os.path.isdir(path) and not os.access(path, os.R_OK | os.X_OK)
    if forbidden:
        raise ModelError(f"{flag} {name}: this user may not read that folder; change its permissions, or copy it")


def _local(flag: str, folder: Path, revision: str | None) -> Path:
    """The folder, or the snapshot in it that counts if it is the cache of a repository."""
    snapshots = folder / "snapshots"
    if (folder / "config.json").exists() or not snapshots.is_dir():
        if revision is not None:
            raise ModelError(
                f"--revision {revision}: {flag} {folder} is a folder, which has no revisions; leave it out"
            )
        return folder
    ref = folder / "refs" / (revision or _MAIN)
    commit = ref.read_text(encoding="utf-8").strip() if ref.is_file() else revision
    held = sorted(path.name for path in snapshots.iterdir())
    if commit is None and len(held) == 1:
        return snapshots / held[0]
    if commit not in held:
        raise ModelError(
            f"{flag} {folder}: this cache of a Hub repository does not hold {revision or _MAIN}; it has"
            f" {', '.join(held) or 'no snapshot'}; give one of them as --revision"
        )
    return snapshots / commit
