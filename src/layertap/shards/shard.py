"""A shard of any format and version. It reads only what you ask for.

No file is trusted. Shapes, dtypes, sample numbers and offsets are compared with the manifest before
any value is returned. `verify` checks whether values, norms and flags are the right ones.

Version 1 differs in three ways. Its safetensors had a file for each tap. It stored no norms, so
they are computed from the activations. It stored a flag for sinks: tokens with over ten times the
median norm of the shard. So another factor is refused.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from layertap.core.columns import NO_LABELS, SINK, SINK_FACTOR, find_sinks, usual_norms
from layertap.core.selection import ALL
from layertap.core.taps import Tap
from layertap.errors import DamageError, UsageError
from layertap.objects.base import ObjectStore
from layertap.shards.manifest import Manifest, ShardEntry, StoredFile
from layertap.shards.once import Once
from layertap.shards.statistics import measure


@dataclass(frozen=True)
class Words:
    """The facts about a sample that are words."""

    task_id: str
    text_preview: str
    origin: Mapping[str, Any]


class Shard(ABC):
    """One shard of the output folder `store`. Rows count its tokens, from 0.

    What is the same at all taps is read at `tap`, or without `tap` where that costs least. All
    calls raise DamageError where a file is damaged.
    """

    def __init__(self, store: ObjectStore, manifest: Manifest, entry: ShardEntry) -> None:
        self._store = store
        self._manifest = manifest
        self._entry = entry
        self._files = {(file.site, file.layer): file for file in entry.files if file.kind == "activations"}
        self._usual: Once[Tap, np.ndarray] = Once()

    @abstractmethod
    def offsets(self, tap: Tap | None = None) -> np.ndarray:
        """Return where each sample begins, and where the last one ends; int64 [samples + 1]."""

    @abstractmethod
    def sample_idx(self, tap: Tap | None = None) -> np.ndarray:
        """Return the samples' numbers; int64 [samples]."""

    @abstractmethod
    def words(self, tap: Tap | None = None) -> list[Words]:
        """Return the words of each sample. Each call parses them again."""

    @abstractmethod
    def activations(self, tap: Tap, begin: int, end: int, *, own: bool = False) -> np.ndarray:
        """Return [rows, width] in the storage dtype, or in float32 where that is quantised.

        `own`: you copy the rows at once, so nothing is mapped.
        """

    @abstractmethod
    def _column(self, name: str, begin: int, end: int, tap: Tap | None) -> np.ndarray:
        """Return a column that is stored."""

    @abstractmethod
    def _norms(self, tap: Tap, begin: int, end: int) -> np.ndarray:
        """Return norms that are stored."""

    def scales(self, tap: Tap, begin: int, end: int) -> np.ndarray | None:
        """Return the scale of each row at a tap; float32. None if the dtype is not quantised."""
        return None

    def column(self, name: str, begin: int, end: int, tap: Tap | None = None) -> np.ndarray:
        """Return a column at these rows. Raises UsageError if the run stored no such column."""
        if name == "positions" and name not in self._manifest.columns:
            return self._counted(begin, end, tap)
        if name not in self._manifest.columns:
            advice = "; it was extracted by a version without labels, extract it again" if name in NO_LABELS else ""
            held = ", ".join(self._manifest.columns)
            raise UsageError(f"{self._store.url}: has no column {name}; it has {held}{advice}")
        values = self._column(name, begin, end, tap)
        return values & ~np.uint8(SINK) if name == "flags" and self._manifest.format_version == 1 else values

    def positions(self, begin: int, end: int) -> np.ndarray:
        """Return the position of each row's token in its prompt.

        Positions are read only where the run did not keep all tokens; otherwise they are counted.
        """
        kept_all = ALL in self._manifest.keep_tokens
        return self._counted(begin, end, None) if kept_all else self.column("positions", begin, end)

    def norms(self, tap: Tap, begin: int, end: int) -> np.ndarray:
        """Return the Euclidean norm of each row at a tap; float32."""
        if self._manifest.format_version == 1:
            return measure(self.activations(tap, begin, end), 0)[1].astype(np.float32)
        return self._norms(tap, begin, end)

    def sinks(self, tap: Tap, begin: int, end: int, factor: float = SINK_FACTOR) -> np.ndarray:
        """Return which rows are sinks at a tap; bool.

        Raises UsageError for a shard of version 1 if the factor is not the one that it stored.
        """
        if self._manifest.format_version == 1:
            if factor != SINK_FACTOR:
                raise UsageError(
                    f"{self._store.url}: is of format version 1, which stored sinks by a factor of {SINK_FACTOR:g} and"
                    " no norms; leave out the factor, or extract again"
                )
            return (self._column("flags", begin, end, tap) & SINK) != 0
        offsets = self.offsets()
        usual = self._usual.get(tap, lambda: usual_norms(self.norms(tap, 0, self._entry.tokens), offsets))
        samples = np.searchsorted(offsets, np.arange(begin, end), side="right") - 1
        return find_sinks(self.norms(tap, begin, end), usual[samples], factor)

    def _counted(self, begin: int, end: int, tap: Tap | None) -> np.ndarray:
        """Count the positions of whole samples."""
        offsets, rows = self.offsets(tap), np.arange(begin, end)
        return (rows - offsets[np.searchsorted(offsets, rows, side="right") - 1]).astype(np.int32)

    def _damage(self, file: StoredFile, what: str) -> DamageError:
        return DamageError(f"{self._store.url}/{file.path}: {what}")

    def _missing_file(self, what: str) -> DamageError:
        return DamageError(f"{self._store.url}: its manifest lists no file for {what}, of shard {self._entry.index}")
