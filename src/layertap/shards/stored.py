"""Reading a whole file of an output folder, and comparing it with the manifest."""

from layertap.errors import DamageError, StorageError
from layertap.objects.base import ObjectStore
from layertap.objects.files import crc32c_of
from layertap.shards.manifest import StoredFile


def read_stored(store: ObjectStore, file: StoredFile) -> bytes:
    """Read a file that the manifest names. Raises DamageError where it is not what that says.

    A file that a disk cannot read is damage, too. A bucket that does not answer is not: that raises
    StorageError.
    """
    try:
        with store.open(file.path, file.bytes + 1) as opened:  # one more, to notice where it is longer
            content = opened.read(file.bytes + 1)
    except DamageError as error:
        raise DamageError(f"{file.path}: missing") from error
    except OSError as error:
        raise DamageError(f"{file.path}: cannot be read: {error.strerror or error}") from error
    except StorageError as error:
        raise (DamageError(str(error).removeprefix(f"{store.url}/")) if store.local else error) from error
    if len(content) != file.bytes:
        info = store.stat(file.path)
        size = len(content) if info is None else info.size
        raise DamageError(f"{file.path}: has {size} bytes, should have {file.bytes}")
    crc32c = crc32c_of([content])
    if crc32c != file.crc32c:
        raise DamageError(f"{file.path}: has CRC-32C {crc32c}, should have {file.crc32c}")
    return content
