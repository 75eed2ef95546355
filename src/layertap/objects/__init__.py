"""Where Layertap keeps output: a folder, a bucket, or any URL that fsspec knows; see base.py."""

from pathlib import Path

from layertap.core.extras import needed_for
from layertap.errors import UsageError
from layertap.objects.base import ObjectStore
from layertap.objects.retry import Retry


def open_store(url: str, retry: Retry | None = None) -> ObjectStore:
    """Return the store below a folder, a `gs://bucket/prefix`, or any other URL that fsspec knows.

    `STORAGE_EMULATOR_HOST` sends `gs://` to another endpoint, without credentials. This call sends
    no request yet.
    """
    scheme, separator, rest = url.partition("://")
    if not separator or scheme == "file":
        from layertap.objects.local import LocalStore

        try:
            return LocalStore(Path(rest if separator else url).expanduser())
        except RuntimeError as error:
            raise UsageError(f"{url}: {error}") from error
    if scheme in ("gs", "gcs"):
        try:
            from layertap.objects.gcs import GcsStore
        except ModuleNotFoundError as error:
            if error.name is None or error.name.partition(".")[0] not in ("google", "requests"):
                raise
            raise UsageError(f"no module {error.name}: gs:// needs {needed_for(url)}") from error
        return GcsStore(rest, retry or Retry())
    from layertap.objects.fsspec import FsspecStore

    return FsspecStore(url, retry or Retry())
