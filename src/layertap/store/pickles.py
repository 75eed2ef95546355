"""The pickle format: `{layer: [{"sample_idx", "activation", "shape", "text_preview", "task_id", "token_ids"}, ...]}`.

Any Python with numpy reads it, in three lines and with no Layertap (docs/formats.md). The same samples give the same
bytes: the gzip header carries neither time nor name, and every object is made anew in one order.

gzip is written by `isal` at level 2: some 20 times the speed of the standard library at the same ratio. Its level 0,
and zlib-ng's level 1, make such data larger. Where isal has no wheel (anything but x86-64 and ARM), zlib's level 1
stands in, with other bytes; `codec` names which, for the run fingerprint.

Activations are kept as the device gave them (bfloat16 in a bfloat16 run) until they are written, and widened one at a
time.
"""

import gzip
import pickle
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import IO, Any, BinaryIO, cast

import numpy as np

from layertap.errors import DamageError, StorageError
from layertap.store.files import Checksummed
from layertap.store.samples import Activation, StoredSample
from layertap.tap import Site, Tap

igzip: ModuleType | None
try:
    from isal import igzip
except ImportError:  # no wheel for this processor
    igzip = None

PROTOCOL = 5


def codec(*, compress: bool) -> str:
    """What stands between the pickle and the file: "none", "isal-2" or "zlib-1"."""
    if not compress:
        return "none"
    return "zlib-1" if igzip is None else "isal-2"


def write_pickle(
    sink: Checksummed,
    samples: Sequence[StoredSample],
    layers: Sequence[int],
    site: Site,
    dtype: np.dtype,
    *,
    compress: bool,
) -> None:
    """Write the activations of `samples` at `site` of `layers` as `dtype`.

    Raises StorageError where a value does not fit into float16.
    """
    shard = {layer: [_entry(sample, Tap(layer, site)) for sample in samples] for layer in layers}
    with _compressed(sink, compress=compress) as file:
        _ShardPickler(file, dtype).dump(shard)


class _Pending:
    """An activation that is converted to the storage dtype only when the pickler reaches it."""

    def __init__(self, activation: Activation, sample_idx: int, tap: Tap) -> None:
        self.activation = activation
        self.sample_idx = sample_idx
        self.tap = tap

    def converted(self, dtype: np.dtype) -> Activation:
        with np.errstate(over="ignore"):  # reported below, with the sample's name
            converted = np.ascontiguousarray(self.activation, dtype)
        if dtype == np.float16 and not np.isfinite(converted).all() and np.isfinite(self.activation).all():
            raise StorageError(
                f"sample {self.sample_idx}, layer {self.tap.layer}, {self.tap.site}: a value is too large for float16"
                " (65504); use --storage_dtype float32 or bfloat16"
            )
        return converted


class _ShardPickler(pickle.Pickler):
    def __init__(self, file: IO[bytes], dtype: np.dtype) -> None:
        super().__init__(file, PROTOCOL)
        self._dtype = dtype

    def reducer_override(self, obj: Any) -> Any:  # noqa: ANN401, RUF100 - the pickle protocol's own types
        return obj.converted(self._dtype).__reduce_ex__(PROTOCOL) if isinstance(obj, _Pending) else NotImplemented


def _entry(sample: StoredSample, tap: Tap) -> dict[str, object]:
    activation = sample.activations[tap]
    return {
        "sample_idx": sample.sample_idx,
        "activation": _Pending(activation, sample.sample_idx, tap),
        "shape": activation.shape,
        "text_preview": sample.text_preview,
        "task_id": sample.task_id,
        "token_ids": sample.token_ids,
    }


@contextmanager
def _compressed(sink: Checksummed, *, compress: bool) -> Iterator[IO[bytes]]:
    raw = cast(BinaryIO, sink)
    if not compress:
        yield raw
    elif igzip is None:
        with gzip.GzipFile(filename="", fileobj=raw, mode="wb", compresslevel=1, mtime=0) as file:
            yield cast(IO[bytes], file)
    else:
        with igzip.IGzipFile(filename="", fileobj=raw, mode="wb", compresslevel=2, mtime=0) as file:
            yield file


def read_pickle(path: Path) -> dict[int, list[dict[str, Any]]]:
    """Read a shard back; gzip is recognised by its magic bytes.

    Nothing but numpy arrays, and the plain containers they stand in, is ever made of the file: a pickle that names
    anything else is refused, as is a file that ends early. Raises DamageError naming the file.
    """
    try:
        with path.open("rb") as raw:
            is_gzip = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            file = (gzip if igzip is None else igzip).open(raw, "rb") if is_gzip else raw
            return cast(dict[int, list[dict[str, Any]]], _ArrayUnpickler(file).load())
    except _UNREADABLE as error:
        raise DamageError(f"{path}: cannot be read as a shard: {error}") from error


# What numpy 1 and 2 call the functions that make an array, and the one dtype that is not numpy's own.
_ALLOWED = {
    *((f"numpy.{core}.multiarray", "_reconstruct") for core in ("core", "_core")),
    *((f"numpy.{core}.numeric", "_frombuffer") for core in ("core", "_core")),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("ml_dtypes", "bfloat16"),
}
_UNREADABLE = (
    OSError,
    EOFError,
    pickle.UnpicklingError,
    zlib.error,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    AttributeError,
)


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:  # noqa: ANN401, RUF100 - the pickle protocol's own types
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which no shard does; it was not made by Layertap")
        return super().find_class(module, name)
