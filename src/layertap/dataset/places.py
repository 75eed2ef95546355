"""Read files and folders, local or at a URL, as lines of bytes.  All disk and network access goes
through `Place` and fsspec: a path with `~`, `gs://`, `s3://` and `memory://` all work the same.
Importing fsspec takes longer than the rest of this package, so it is imported only when the first
place is looked up.  Lines are bytes, not text, so that a line that is not UTF-8 is one bad record
and does not stop the reading. `packing.py` lists how files may be packed.
"""

import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import PurePosixPath
from types import MappingProxyType, MethodType
from typing import TYPE_CHECKING, TypeVar

from layertap.core.extras import needed_for
from layertap.core.far import explain, failures, is_absence
from layertap.dataset.names import unpacked_name
from layertap.dataset.packing import PARQUET, Stored, Unpacked, damage_named, unpack
from layertap.errors import BadTaskError, DatasetError

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem


T = TypeVar("T")

_MAGIC = "*?["
_FLAGS: Mapping[str, str] = {
    "payer": " with --billing_project",
    "credentials": "; --anonymous reads a public bucket",
    "denied": "; --anonymous reads a public bucket, --billing_project one that bills its readers",
}
"""Flags that may help, by the kind of refusal."""
_PAUSES = (1.0, 2.0)
_CONNECT_SECONDS, _READ_SECONDS = 10, 20
_TRIES = 3
_PATIENT = ("gs", "gcs", "s3", "s3a")
"""Schemes whose libraries retry by themselves."""


@dataclass(frozen=True)
class Place:
    """One file or folder. `str` gives what the user wrote, so messages use the user's words."""

    shown: str
    path: str
    filesystem: "AbstractFileSystem"
    below: str = ""
    """The path of this file below the folder that the user gave."""

    def __str__(self) -> str:
        return self.shown

    @property
    def name(self) -> str:
        """The last part of the path, without the suffix of a packing."""
        return unpacked_name(self.path)

    @property
    def stem(self) -> str:
        """The name without its last suffix."""
        return PurePosixPath(self.name).stem

    def is_folder(self) -> bool:
        """Return whether this is a folder; False if nothing is there."""
        # fsspec's own `isdir` returns False for any failure, even a refusal.
        return self._has_folders and self._ask(self._kind) == "directory"

    def is_there(self) -> bool:
        """Return whether a file or folder is there; DatasetError if the server refuses or fails."""
        # fsspec's own `exists` returns False for any failure, even a lost connection.
        return self._ask(self._kind) is not None

    def beside(self, old: str, new: str) -> "Place":
        """Return the place with `old` replaced by `new` in the last part of the path."""

        def renamed(path: str) -> str:
            folder, slash, name = path.rpartition("/")
            return folder + slash + name.replace(old, new)

        return Place(renamed(self.shown), renamed(self.path), self.filesystem, renamed(self.below))

    def is_pattern(self) -> bool:
        """Return whether this is a pattern, and not a file whose name looks like one."""
        return self._has_folders and any(sign in self.path for sign in _MAGIC) and not self.is_there()

    def matches(self) -> list["Place"]:
        """Return the files and folders that this pattern matches."""
        found = self._ask(lambda: self.filesystem.glob(self.path))
        first = min(self.path.find(sign) for sign in _MAGIC if sign in self.path)
        base = self.path[: self.path.rfind("/", 0, first) + 1]
        shown = self.shown[: len(self.shown) - len(self.path) + len(base)]
        return [self._inner(shown, base, str(path).removeprefix(base)) for path in found]

    def all_files(self) -> list["Place"]:
        """Return the files below this folder, at any depth."""
        found = self._ask(lambda: self.filesystem.find(self.path))
        base = self.path.rstrip("/") + "/"
        names = [str(path).removeprefix(base) for path in found]
        return [self._inner(self.shown.rstrip("/") + "/", base, name) for name in names if not name.endswith("/")]

    def names(self) -> list[str]:
        """Return the names directly in this folder."""
        found = self._ask(lambda: self.filesystem.ls(self.path, detail=False))
        return [PurePosixPath(str(path)).name for path in found]

    def _kind(self) -> str | None:
        try:
            return str(self.filesystem.info(self.path)["type"])
        except FileNotFoundError as error:
            if is_absence(self.shown, error):
                return None
            raise

    def _ask(self, question: Callable[[], T]) -> T:
        """Ask the server, and retry failures that may pass; raises DatasetError."""
        for pause in () if self.in_bucket else _PAUSES:
            try:
                return question()
            except failures() as error:
                refusal = explain(self.shown, error)
                if refusal is None or not refusal.passing:
                    raise _refusal(self, error) from error
                time.sleep(pause)
        with _translated(self):
            answer = question()
        vars(self.filesystem).pop("_request", None)  # see _limit_tries
        return answer

    @property
    def in_bucket(self) -> bool:
        """Whether this is in a bucket, whose library retries by itself."""
        return self.shown.partition("://")[0] in _PATIENT

    def _inner(self, shown: str, base: str, name: str) -> "Place":
        below = f"{self.below}/{name}" if self.below else name
        return Place(shown + name, base + name, self.filesystem, below)

    @property
    def _has_folders(self) -> bool:
        """Whether there can be folders. For a web page, fsspec would read all of it to find out."""
        protocol = self.filesystem.protocol
        return not {"http", "https"} & {*((protocol,) if isinstance(protocol, str) else protocol)}

    @contextmanager
    def open(self) -> Iterator["Opened"]:
        """Open the file's content, unpacked; BadTaskError, without its name, if it cannot."""
        with _translated(self), ExitStack() as closing:
            stored = closing.enter_context(self._ask(lambda: self.filesystem.open(self.path, "rb")))
            yield Opened(self, unpack(Stored(stored, lambda: _translated(self)), self.path, str(self), closing))

    def lines(self) -> Iterator[bytes]:
        """Yield the lines of the file's content, like `Opened.lines`; raises DatasetError."""
        try:
            with self.open() as opened:
                yield from opened.lines()
        except BadTaskError as error:
            raise DatasetError(f"{self}: {error}") from error


@dataclass(frozen=True)
class Opened:
    """The content of a file while it is open."""

    place: Place
    content: Unpacked

    @property
    def name(self) -> str:
        """The name without the packing's suffix, in lower case; for a zip, the name inside it."""
        return self.content.name.lower()

    @property
    def stem(self) -> str:
        """The name without its last suffix."""
        return PurePosixPath(self.content.name).stem

    @property
    def is_table(self) -> bool:
        """Whether it is a Parquet table."""
        return self.content.file.peek(len(PARQUET)).startswith(PARQUET)

    def lines(self) -> Iterator[bytes]:
        """Yield the lines with their ends, one in memory at a time; raises DatasetError for
        damage.
        """
        with damage_named(self.content.packing, str(self.place)):
            yield from self.content.file


def locate(path: str, options: Mapping[str, object] = MappingProxyType({})) -> Place:
    """Return the place that `path` names, without opening it; `options` go to fsspec.

    Raises DatasetError if fsspec has no such protocol.
    """
    # gcsfs would first ask for the bucket's type over gRPC, which takes a minute if it is blocked.
    os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    from fsspec.core import url_to_fs

    if not path:
        raise DatasetError("the dataset path is empty; give a file or folder as --dataset_path")
    try:
        filesystem, inner = url_to_fs(path, **_patience(path.partition("://")[0]), **options)
        _keep_quiet()
        _limit_tries(filesystem, path.partition("://")[0])
    except ImportError as error:
        raise DatasetError(f"{path}: {error}; it needs {needed_for(path)}") from error
    except (ValueError, OSError) as error:
        raise DatasetError(f"{path}: {error}; give a local path or a URL that an installed fsspec serves") from error
    return Place(path, inner, filesystem)


def _limit_tries(filesystem: "AbstractFileSystem", scheme: str) -> None:
    """Limit how often the library of a bucket retries.

    Google's library tries six times, which takes half a minute. Before the first answer, retries do
    not help. After it, `Place._ask` removes the limit.
    """
    if scheme in ("s3", "s3a"):
        filesystem.retries = _TRIES
    request = getattr(getattr(type(filesystem), "_request", None), "__wrapped__", None)
    if scheme in ("gs", "gcs") and request is not None:
        from gcsfs.retry import retry_request

        filesystem._request = MethodType(retry_request(retries=_TRIES)(request), filesystem)


@cache
def _keep_quiet() -> None:
    """Keep gcsfs from printing a traceback for an error that Layertap explains."""
    logging.getLogger("gcsfs").addHandler(logging.NullHandler())


def _patience(scheme: str) -> Mapping[str, object]:
    """Return timeouts and retries for the library of a scheme; their own defaults take minutes."""
    if scheme in ("s3", "s3a"):
        limits = {"connect_timeout": _CONNECT_SECONDS, "read_timeout": _READ_SECONDS}
        return {"config_kwargs": {**limits, "retries": {"mode": "standard", "max_attempts": 2}}}
    if scheme not in ("http", "https", "gs", "gcs"):
        return {}
    from aiohttp import ClientTimeout

    limit = ClientTimeout(total=None, sock_connect=_CONNECT_SECONDS, sock_read=_READ_SECONDS)
    return {"client_kwargs": {"timeout": limit}} if scheme.startswith("http") else {"requests_timeout": limit}


@contextmanager
def _translated(place: Place) -> Iterator[None]:
    try:
        yield
    except failures() as error:
        raise _refusal(place, error) from error


def _refusal(place: Place, error: BaseException) -> BaseException:
    """Translate an error to DatasetError; return it unchanged if it is of no known kind."""
    refusal = explain(place.shown, error)
    if refusal is not None:
        return DatasetError(f"{place}: {refusal.reason}{_FLAGS.get(refusal.kind, '') if place.in_bucket else ''}")
    if isinstance(error, FileNotFoundError):
        return DatasetError(f"{place}: no such file or folder; check --dataset_path")
    if isinstance(error, PermissionError):
        return DatasetError(f"{place}: cannot be read: permission denied; check its permissions ({error})")
    return DatasetError(f"{place}: cannot be read: {error}") if isinstance(error, OSError) else error
