"""What a shard holds, the same for both formats, read as far as it is asked for.

safetensors are read by parts: the header once, then ranges of rows. A pickle can only be read whole, one file a site,
by an unpickler that makes arrays and nothing else (shards/pickles.py). It stays in memory as long as its shard.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, cast

import numpy as np

from layertap.core.taps import Site, Tap
from layertap.errors import DamageError
from layertap.reader.once import Once
from layertap.reader.sources import Source
from layertap.shards.manifest import ShardEntry, StoredFile, index_ranges
from layertap.shards.pickles import load_pickle
from layertap.shards.safetensors import FORMAT, FORMAT_VERSION, TENSORS
from layertap.shards.tensors import TensorLayout, data_start, parse_layout

_FIRST_BYTES = 256 << 10
"""Fetched at first, in the hope that the header is not longer."""


@dataclass(frozen=True)
class Words:
    """What is told of a sample in words."""

    task_id: str
    text_preview: str
    origin: Mapping[str, Any]


class ShardContent(Protocol):
    """One shard. Rows are counted over its tokens, from 0. All calls raise DamageError where a file is not right."""

    def offsets(self) -> np.ndarray:
        """Where each sample begins, and behind the last one; int64 [samples + 1]."""

    def sample_idx(self) -> np.ndarray:
        """The samples' numbers; int64."""

    def words(self, number: int) -> Words:
        """Of the sample that stands at `number` in the shard."""

    def token_ids(self, begin: int, end: int) -> np.ndarray:
        """Of these rows; int32."""

    def flags(self, tap: Tap, begin: int, end: int) -> np.ndarray:
        """Of these rows; uint8."""

    def activations(self, tap: Tap, begin: int, end: int, *, own: bool = False) -> np.ndarray:
        """Of these rows; [rows, hidden] in the storage dtype. `own`: they are copied on at once, so map nothing."""


def open_shard(source: Source, entry: ShardEntry) -> ShardContent:
    """A shard, of which nothing is read yet."""
    kind = TensorShard if source.manifest.format == "safetensors" else PickledShard
    return kind(source, entry)


def _files(entry: ShardEntry) -> dict[tuple[str | None, int | None], StoredFile]:
    return {(file.site, file.layer): file for file in entry.files if file.kind == "activations"}


class TensorShard:
    """A shard of safetensors; several threads may use it."""

    def __init__(self, source: Source, entry: ShardEntry) -> None:
        self._source = source
        self._entry = entry
        self._files = _files(entry)
        self._layouts: Once[Tap, TensorLayout] = Once()
        self._small: Once[str, np.ndarray] = Once()

    def offsets(self) -> np.ndarray:
        """See `ShardContent`."""
        self.sample_idx()  # tells another shard's file from this one's
        return self._whole("sample_offsets", self._require_offsets)

    def sample_idx(self) -> np.ndarray:
        """See `ShardContent`."""
        return self._whole("sample_idx", self._require_own)

    def words(self, number: int) -> Words:
        """See `ShardContent`; parses the header again, which is not kept."""
        tap = self._any_tap()
        try:
            told = json.loads(self._read_layout(tap).metadata["samples"])[number]
            return Words(told["task_id"], told["text_preview"], told["origin"])
        except (ValueError, LookupError, TypeError) as error:
            raise self._damage(tap, f"its list of samples in words is garbled: {error!r}") from error

    def token_ids(self, begin: int, end: int) -> np.ndarray:
        """See `ShardContent`."""
        return self._rows(self._any_tap(), "token_ids", begin, end)

    def flags(self, tap: Tap, begin: int, end: int) -> np.ndarray:
        """See `ShardContent`."""
        return self._rows(tap, "flags", begin, end)

    def activations(self, tap: Tap, begin: int, end: int, *, own: bool = False) -> np.ndarray:
        """See `ShardContent`."""
        return self._rows(tap, "activations", begin, end, own=own)

    def _any_tap(self) -> Tap:
        """A tap whose header is read already, else the first."""
        manifest = self._source.manifest
        return self._layouts.first or Tap(manifest.layers[0], cast(Site, manifest.sites[0]))

    def _file(self, tap: Tap) -> StoredFile:
        try:
            return self._files[tap.site, tap.layer]
        except KeyError as error:
            raise DamageError(
                f"{self._source.name or '.'}/metadata.json: names no file for layer {tap.layer}, {tap.site}, of shard"
                f" {self._entry.index}"
            ) from error

    def _whole(self, tensor: str, require: Callable[[np.ndarray], None]) -> np.ndarray:
        """A tensor that is short: checked, and kept."""
        return self._small.get(tensor, partial(self._read_whole, tensor, require))

    def _read_whole(self, tensor: str, require: Callable[[np.ndarray], None]) -> np.ndarray:
        tap = self._any_tap()
        found = self._rows(tap, tensor, 0, self._layout(tap).places[tensor].shape[0])
        require(found)
        return found

    def _require_offsets(self, offsets: np.ndarray) -> None:
        if offsets[0] != 0 or offsets[-1] != self._entry.tokens or (np.diff(offsets) < 0).any():
            raise self._damage(self._any_tap(), "sample_offsets do not rise from 0 to the number of tokens")

    def _require_own(self, sample_idx: np.ndarray) -> None:
        if index_ranges(sample_idx.tolist()) != self._entry.sample_idx:
            raise self._damage(self._any_tap(), "holds other samples than metadata.json says")

    def _rows(self, tap: Tap, tensor: str, begin: int, end: int, *, own: bool = False) -> np.ndarray:
        place = self._layout(tap).places[tensor]
        width = place.dtype.itemsize * (place.shape[1] if len(place.shape) > 1 else 1)
        read = self._source.store.fetch if own else self._source.store.view
        raw = read(self._file(tap).path, place.start + begin * width, (end - begin) * width)
        return raw.view(place.dtype).reshape(end - begin, *place.shape[1:])

    def _layout(self, tap: Tap) -> TensorLayout:
        return self._layouts.get(tap, partial(self._read_places, tap))

    def _read_places(self, tap: Tap) -> TensorLayout:
        read = self._read_layout(tap)
        return TensorLayout({}, read.places, read.data_start)

    def _read_layout(self, tap: Tap) -> TensorLayout:
        file, store = self._file(tap), self._source.store
        name = self._source.named(file)
        self._source.require_size(file)
        first = store.view(file.path, 0, min(_FIRST_BYTES, file.bytes)).tobytes()
        start = data_start(first, file.bytes, name)
        if start > len(first):
            first += store.view(file.path, len(first), start - len(first)).tobytes()
        layout = parse_layout(first[:start], file.bytes, name)
        self._require_sound(tap, layout)
        return layout

    def _require_sound(self, tap: Tap, layout: TensorLayout) -> None:
        manifest, tokens, samples = self._source.manifest, self._entry.tokens, self._entry.samples
        if (layout.metadata.get("format"), layout.metadata.get("format_version")) != (FORMAT, FORMAT_VERSION):
            raise self._damage(tap, f"is not a shard of {FORMAT} {FORMAT_VERSION}")
        if (layout.metadata.get("layer"), layout.metadata.get("site")) != (str(tap.layer), tap.site):
            raise self._damage(tap, f"is not of layer {tap.layer}, {tap.site}")
        expected = {
            "activations": (manifest.storage_dtype, (tokens, manifest.hidden_size)),
            "token_ids": ("int32", (tokens,)),
            "positions": ("int32", (tokens,)),
            "sample_offsets": ("int64", (samples + 1,)),
            "sample_idx": ("int64", (samples,)),
            "flags": ("uint8", (tokens,)),
        }
        held = {name: (place.dtype.name, place.shape) for name, place in layout.places.items()}
        for name in TENSORS:
            if held.get(name) != expected[name]:
                raise self._damage(tap, f"{name} is {held.get(name)}, should be {expected[name]}")

    def _damage(self, tap: Tap, what: str) -> DamageError:
        return DamageError(f"{self._source.named(self._file(tap))}: {what}")


class PickledShard:
    """A shard of pickles; for one thread at a time."""

    def __init__(self, source: Source, entry: ShardEntry) -> None:
        self._source = source
        self._entry = entry
        self._files = _files(entry)
        self._sites: dict[str, dict[int, list[dict[str, Any]]]] = {}

    def offsets(self) -> np.ndarray:
        """See `ShardContent`."""
        return np.cumsum([0, *(len(entry["token_ids"]) for entry in self._any())], dtype=np.int64)

    def sample_idx(self) -> np.ndarray:
        """See `ShardContent`."""
        return np.array([entry["sample_idx"] for entry in self._any()], np.int64)

    def words(self, number: int) -> Words:
        """See `ShardContent`."""
        entry = self._any()[number]
        return Words(entry["task_id"], entry["text_preview"], entry["origin"])

    def token_ids(self, begin: int, end: int) -> np.ndarray:
        """See `ShardContent`."""
        return self._rows(self._any(), "token_ids", begin, end)

    def flags(self, tap: Tap, begin: int, end: int) -> np.ndarray:
        """See `ShardContent`."""
        return self._rows(self._entries(tap), "flags", begin, end)

    def activations(self, tap: Tap, begin: int, end: int, *, own: bool = False) -> np.ndarray:
        """See `ShardContent`; a view where the rows are of one sample."""
        return self._rows(self._entries(tap), "activation", begin, end)

    def _any(self) -> list[dict[str, Any]]:
        """The samples at a site that is loaded already, else at the first."""
        site = next(iter(self._sites), self._source.manifest.sites[0])
        return next(iter(self._layers(site).values()))

    def _entries(self, tap: Tap) -> list[dict[str, Any]]:
        return self._layers(tap.site)[tap.layer]

    def _layers(self, site: str) -> dict[int, list[dict[str, Any]]]:
        if site not in self._sites:
            self._sites[site] = self._load(site)
        return self._sites[site]

    def _load(self, site: str) -> dict[int, list[dict[str, Any]]]:
        file = self._files.get((site, None))
        if file is None:
            raise DamageError(
                f"{self._source.name or '.'}/metadata.json: names no file for {site} of shard {self._entry.index}"
            )
        name = self._source.named(file)
        with self._source.store.open(file.path, file.bytes) as stream:
            layers = load_pickle(stream, name)
        self._require_sound(layers, name)
        return layers

    def _require_sound(self, layers: dict[int, list[dict[str, Any]]], name: str) -> None:
        manifest = self._source.manifest
        if tuple(layers) != manifest.layers:
            raise DamageError(f"{name}: holds layers {list(layers)}, should hold {list(manifest.layers)}")
        first = [(entry["sample_idx"], len(entry["token_ids"])) for entry in layers[manifest.layers[0]]]
        held = index_ranges(sample_idx for sample_idx, _ in first), sum(tokens for _, tokens in first)
        if held != (self._entry.sample_idx, self._entry.tokens):
            raise DamageError(f"{name}: holds other samples or tokens than metadata.json says")
        for layer, entries in layers.items():
            same = first == [(entry["sample_idx"], len(entry["token_ids"])) for entry in entries]
            forms = [
                (entry["activation"].dtype.name, entry["activation"].shape, len(entry["flags"])) for entry in entries
            ]
            expected = [(manifest.storage_dtype, (tokens, manifest.hidden_size), tokens) for _, tokens in first]
            if not same or forms != expected:
                raise DamageError(f"{name}: layer {layer} holds other samples, shapes or dtypes than it should")

    def _rows(self, entries: list[dict[str, Any]], field: str, begin: int, end: int) -> np.ndarray:
        offsets = self.offsets()
        first, last = np.searchsorted(offsets, (begin, max(begin, end - 1)), side="right") - 1
        parts = [
            entries[number][field][max(begin - start, 0) : end - start]
            for number, start in zip(range(first, last + 1), offsets[first : last + 1].tolist(), strict=True)
            if number < len(entries)
        ]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)
