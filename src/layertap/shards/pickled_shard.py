"""A shard of pickles: one file for each site, read whole."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from layertap.core.taps import Tap
from layertap.objects.base import ObjectStore
from layertap.shards.manifest import Manifest, ShardEntry, index_ranges, listed_ranges
from layertap.shards.pickles import Entry, load_pickle
from layertap.shards.shard import Shard, Words
from layertap.shards.stored import read_stored


class PickledShard(Shard):
    """A shard of pickles. Only one thread at a time may use it."""

    def __init__(self, store: ObjectStore, manifest: Manifest, entry: ShardEntry) -> None:
        super().__init__(store, manifest, entry)
        self._sites: dict[str, dict[int, list[Entry]]] = {}

    def offsets(self, tap: Tap | None = None) -> np.ndarray:
        return np.cumsum([0, *(len(entry["token_ids"]) for entry in self._entries(tap))], dtype=np.int64)

    def sample_idx(self, tap: Tap | None = None) -> np.ndarray:
        return np.array([entry["sample_idx"] for entry in self._entries(tap)], np.int64)

    def words(self, tap: Tap | None = None) -> list[Words]:
        return [Words(entry["task_id"], entry["text_preview"], entry["origin"]) for entry in self._entries(tap)]

    def activations(self, tap: Tap, begin: int, end: int, *, own: bool = False) -> np.ndarray:
        """Return the rows; they are a view if they belong to one sample."""
        return self._rows(tap, "activation", begin, end)

    def _column(self, name: str, begin: int, end: int, tap: Tap | None) -> np.ndarray:
        return self._rows(tap, name, begin, end)

    def _norms(self, tap: Tap, begin: int, end: int) -> np.ndarray:
        return self._rows(tap, "norms", begin, end)

    def _entries(self, tap: Tap | None) -> list[Entry]:
        """Return the samples at a tap, or without a tap at a site that is already loaded."""
        if tap is None:
            tap = next((tap for tap in self._manifest.taps if tap.site in self._sites), next(iter(self._manifest.taps)))
        if tap.site not in self._sites:
            self._sites[tap.site] = self._load(tap.site)
        return self._sites[tap.site][tap.layer]

    def _load(self, site: str) -> dict[int, list[Entry]]:
        file = self._files.get((site, None))
        if file is None:
            raise self._missing_file(site)
        name = f"{self._store.url}/{file.path}"
        layers = load_pickle(read_stored(self._store, file), name, self._manifest.columns)
        for finding in self._wrong_layers(site, layers):
            raise self._damage(file, finding)
        return layers

    def _wrong_layers(self, site: str, layers: Mapping[int, Sequence[Entry]]) -> Iterator[str]:
        expected = [tap.layer for tap in self._manifest.taps if tap.site == site]
        if list(layers) != expected:
            yield f"holds layers {list(layers)}, should hold {expected}"
            return
        first = [(entry["sample_idx"], len(entry["token_ids"])) for entry in layers[expected[0]]]
        held, tokens = index_ranges(sample_idx for sample_idx, _ in first), sum(tokens for _, tokens in first)
        if held != self._entry.sample_idx:
            yield f"holds samples {listed_ranges(held)}, should hold {listed_ranges(self._entry.sample_idx)}"
        if tokens != self._entry.tokens:
            yield f"holds {tokens} tokens, should hold {self._entry.tokens}"
        for layer, entries in layers.items():
            if first != [(entry["sample_idx"], len(entry["token_ids"])) for entry in entries]:
                yield f"layer {layer} holds other samples or tokens than layer {expected[0]}"
            for entry in entries:
                for finding in self._wrong_entry(Tap(layer, site), entry):  # type: ignore[arg-type]
                    yield f"layer {layer}, sample {entry['sample_idx']}: {finding}"

    def _wrong_entry(self, tap: Tap, entry: Entry) -> Iterator[str]:
        activation, norms = entry["activation"], entry.get("norms")
        expected = (self._manifest.storage_dtype, (len(entry["token_ids"]), self._manifest.taps[tap]))
        if (activation.dtype.name, activation.shape) != expected or entry["shape"] != expected[1]:
            held = f"{activation.dtype.name} {list(activation.shape)}, with shape={list(entry['shape'])}"
            yield f"activation is {held}, should be {expected[0]} {list(expected[1])}"
        if self._manifest.format_version > 1 and (
            not isinstance(norms, np.ndarray) or (norms.dtype.name, norms.shape) != ("float32", expected[1][:1])
        ):
            yield "norms are missing or not one float32 a token"

    def _rows(self, tap: Tap | None, field: str, begin: int, end: int) -> np.ndarray:
        entries, offsets = self._entries(tap), self.offsets(tap)
        first, last = np.searchsorted(offsets, (begin, max(begin, end - 1)), side="right") - 1
        parts = [
            entries[number][field][max(begin - start, 0) : end - start]
            for number, start in zip(range(first, last + 1), offsets[first : last + 1].tolist(), strict=True)
            if number < len(entries)
        ]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)
