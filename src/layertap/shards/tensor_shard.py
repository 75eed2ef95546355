"""A shard of safetensors, read in ranges: the header once, then the rows that you ask for."""

import json
from collections.abc import Iterator
from functools import partial
from math import prod

import numpy as np

from layertap.core.taps import Tap
from layertap.objects.base import ObjectStore
from layertap.shards.manifest import Manifest, ShardEntry, StoredFile, index_ranges, listed_ranges
from layertap.shards.once import Once
from layertap.shards.quantised import dequantise, dtype_name
from layertap.shards.safetensors import FORMAT, tensor_name
from layertap.shards.shard import Shard, Words
from layertap.shards.tensors import ALIGNMENT, TensorLayout, data_start, parse_layout

_FIRST_BYTES = 256 << 10
"""How much is fetched first. Most headers are not longer."""


class TensorShard(Shard):
    """A shard of safetensors. Several threads may use it at once."""

    def __init__(self, store: ObjectStore, manifest: Manifest, entry: ShardEntry) -> None:
        super().__init__(store, manifest, entry)
        self._layouts: Once[StoredFile, TensorLayout] = Once()
        self._small: Once[tuple[StoredFile, str], np.ndarray] = Once()

    def offsets(self, tap: Tap | None = None) -> np.ndarray:
        self.sample_idx(tap)  # raises for the file of another shard
        return self._whole(tap, "sample_offsets")

    def sample_idx(self, tap: Tap | None = None) -> np.ndarray:
        return self._whole(tap, "sample_idx")

    def words(self, tap: Tap | None = None) -> list[Words]:
        file = self._file(tap)
        try:
            told = json.loads(self._read_layout(file).metadata["samples"])
            words = [Words(str(one["task_id"]), str(one["text_preview"]), dict(one["origin"])) for one in told]
        except (ValueError, LookupError, TypeError) as error:
            raise self._damage(file, f"its list of samples in words cannot be read: {error!r}") from error
        if len(words) != self._entry.samples:
            raise self._damage(file, f"describes {len(words)} samples, should describe {self._entry.samples}")
        return words

    def activations(self, tap: Tap, begin: int, end: int, *, own: bool = False) -> np.ndarray:
        stored = self._rows(self._file(tap), self._tensor(tap), begin, end, own=own)
        return stored if (scales := self.scales(tap, begin, end)) is None else dequantise(stored, scales)

    def scales(self, tap: Tap, begin: int, end: int) -> np.ndarray | None:
        return self._of_tokens("scales", tap, begin, end) if self._manifest.quantised else None

    def _column(self, name: str, begin: int, end: int, tap: Tap | None) -> np.ndarray:
        return self._rows(self._file(tap), name, begin, end)

    def _norms(self, tap: Tap, begin: int, end: int) -> np.ndarray:
        return self._of_tokens("norms", tap, begin, end)

    def _of_tokens(self, tensor: str, tap: Tap, begin: int, end: int) -> np.ndarray:
        """Read rows of a tap from a tensor with one number for each token and tap."""
        row = list(self._manifest.taps).index(tap) * self._entry.tokens
        return self._rows(self._file(tap), tensor, row + begin, row + end, flat=True)

    def _file(self, tap: Tap | None) -> StoredFile:
        """Return the file that holds a tap; without a tap, the file whose header was read first."""
        if tap is None:
            return self._layouts.first or self._file(next(iter(self._manifest.taps)))
        found = self._files.get((tap.site, tap.layer) if self._manifest.format_version == 1 else (None, None))
        if found is None:
            raise self._missing_file(f"layer {tap.layer}, {tap.site}")
        return found

    def _tensor(self, tap: Tap) -> str:
        return "activations" if self._manifest.format_version == 1 else tensor_name(tap)

    def _whole(self, tap: Tap | None, tensor: str) -> np.ndarray:
        """Return a short tensor. It is checked and kept."""
        file = self._file(tap)
        return self._small.get((file, tensor), partial(self._read_whole, file, tensor))

    def _read_whole(self, file: StoredFile, tensor: str) -> np.ndarray:
        found = self._rows(file, tensor, 0, self._layout(file).places[tensor].shape[0])
        if tensor == "sample_idx" and index_ranges(found.tolist()) != self._entry.sample_idx:
            held, expected = index_ranges(found.tolist()), self._entry.sample_idx
            raise self._damage(file, f"holds samples {listed_ranges(held)}, should hold {listed_ranges(expected)}")
        if tensor == "sample_offsets" and (
            found[0] != 0 or found[-1] != self._entry.tokens or (np.diff(found) < 0).any()
        ):
            raise self._damage(file, "sample_offsets do not rise from 0 to the number of tokens")
        return found

    def _rows(
        self, file: StoredFile, tensor: str, begin: int, end: int, *, own: bool = False, flat: bool = False
    ) -> np.ndarray:
        """Read rows of a tensor. With `flat`, `begin` and `end` count single values instead."""
        place = self._layout(file).places[tensor]
        shape = () if flat else place.shape[1:]
        size = place.dtype.itemsize * prod(shape)
        read = self._store.fetch if own else self._store.view
        raw = read(file.path, place.start + begin * size, (end - begin) * size)
        return raw.view(place.dtype).reshape(end - begin, *shape)

    def _layout(self, file: StoredFile) -> TensorLayout:
        return self._layouts.get(file, partial(self._read_places, file))

    def _read_places(self, file: StoredFile) -> TensorLayout:
        read = self._read_layout(file)
        return TensorLayout({}, read.places, read.data_start)

    def _read_layout(self, file: StoredFile) -> TensorLayout:
        self._require_size(file)
        first = self._store.view(file.path, 0, min(_FIRST_BYTES, file.bytes)).tobytes()
        start = data_start(first, file.bytes, f"{self._store.url}/{file.path}")
        if start > len(first):
            first += self._store.view(file.path, len(first), start - len(first)).tobytes()
        layout = parse_layout(first[:start], file.bytes, f"{self._store.url}/{file.path}")
        for finding in self._wrong_layout(file, layout):
            raise self._damage(file, finding)
        return layout

    def _wrong_layout(self, file: StoredFile, layout: TensorLayout) -> Iterator[str]:
        manifest, metadata = self._manifest, {"format": FORMAT, "format_version": str(self._manifest.format_version)}
        metadata["fingerprint"] = manifest.fingerprint
        if file.layer is not None:
            metadata |= {"layer": str(file.layer), "site": str(file.site)}
        for name, value in metadata.items():
            if layout.metadata.get(name) != value:
                yield f"its metadata says {name} {layout.metadata.get(name)}, should say {value}"
        if layout.data_start % ALIGNMENT:
            yield f"its data begins at byte {layout.data_start}, which is not a multiple of {ALIGNMENT}"
        expected = self._expected_tensors(file)
        held = {name: f"{dtype_name(place.dtype)} {list(place.shape)}" for name, place in layout.places.items()}
        for name in [*expected, *(name for name in held if name not in expected)]:
            if held.get(name) != expected.get(name):
                yield f"{name} is {held.get(name, 'missing')}, should be {expected.get(name, 'absent')}"

    def _expected_tensors(self, file: StoredFile) -> dict[str, str]:
        """Return the dtype and shape of each tensor that the file should hold."""
        manifest, tokens, samples = self._manifest, self._entry.tokens, self._entry.samples
        own = {tap: width for tap, width in manifest.taps.items() if file.layer in (None, tap.layer)}
        own = {tap: width for tap, width in own.items() if file.site in (None, tap.site)}
        return {
            **{self._tensor(tap): f"{manifest.storage_dtype} [{tokens}, {width}]" for tap, width in own.items()},
            **({"norms": f"float32 [{len(own)}, {tokens}]"} if manifest.format_version > 1 else {}),
            **({"scales": f"float32 [{len(own)}, {tokens}]"} if manifest.quantised else {}),
            "sample_offsets": f"int64 [{samples + 1}]",
            "sample_idx": f"int64 [{samples}]",
            **{name: f"{dtype} [{tokens}]" for name, dtype in manifest.columns.items()},
        }

    def _require_size(self, file: StoredFile) -> None:
        """Check the file's size where that costs no request.

        Elsewhere a file that is too short is noticed when it is read.
        """
        if not self._store.local:
            return
        info = self._store.stat(file.path)
        if info is None or info.size != file.bytes:
            held = "missing" if info is None else f"has {info.size} bytes, should have {file.bytes}"
            raise self._damage(file, held)
