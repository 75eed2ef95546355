"""`ActivationDataset`: what one or many runs wrote, read as one dataset.

Opening it reads the manifests and nothing else (a bucket: one listing, one request a worker).
Samples and batches then read what they need; which bytes that is, is told in content.py (samples)
and batches.py (training).
"""

from bisect import bisect_right
from collections.abc import Collection, Mapping, Sequence, Set
from functools import lru_cache
from operator import index as exact_int
from pathlib import Path
from typing import overload

from layertap.core.columns import SINK_FACTOR
from layertap.core.taps import SITES, Site, Tap
from layertap.errors import DamageError, UsageError
from layertap.objects import open_store
from layertap.reader.batches import Batches
from layertap.reader.config import BatchConfig, Dtype, Flag, Framework
from layertap.reader.overlap import Described, described, require_each_once
from layertap.reader.sample import ActivationSample
from layertap.reader.shards import Shards
from layertap.reader.sources import find_sources
from layertap.shards.shard import Shard


class ActivationDataset(Sequence[ActivationSample]):
    """The samples below a folder, a `gs://bucket/prefix`, or another URL that fsspec knows, of any
    number of workers.

        dataset = layertap.ActivationDataset("gs://my-bucket/activations")
        dataset[0].activation(layer=12)         # [tokens, hidden]
        for batch in dataset.batches(4096, layers=[12], exclude={"first", "sink"}, as_="torch"):
            batch.activations                   # [4096, 1, hidden]

    Shards that are committed later are not seen. Raises UsageError where there is no run, where
    runs do not go together, or where they hold the same samples; DamageError where a manifest is
    garbled.
    """

    def __init__(self, path: str | Path, *, sharded_dataset: str | None = None) -> None:
        """`sharded_dataset` is where the done-manifests of a claimed dataset lie; they tell which
        attempts count.
        """
        self._store = open_store(str(path))
        self.path = self._store.url
        self._shards = Shards(find_sources(self._store, sharded_dataset))
        self._last_pickled = lru_cache(maxsize=1)(self._shards.content)
        require_each_once(self.path, self._shards.sources, self._describe)

    @property
    def sources(self) -> tuple[str, ...]:
        """The folders that it is made of, below `path`."""
        return tuple(source.name for source in self._shards.sources)

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers that were extracted."""
        return self._shards.sources[0].manifest.layers

    @property
    def sites(self) -> tuple[Site, ...]:
        """The sites that were extracted."""
        return tuple(site for site in SITES if site in self._shards.sources[0].manifest.sites)

    @property
    def hidden_size(self) -> int:
        """The width of an activation; raises UsageError where sites differ in it."""
        widths = set(self._widths.values())
        if len(widths) > 1:
            raise UsageError(f"{self.path}: its sites differ in width; ask for width(layer, site)")
        return widths.pop()

    def width(self, layer: int, site: Site | None = None) -> int:
        """How many numbers an activation has at this layer and site."""
        return self._widths[self._tap(layer, site)]

    @property
    def _widths(self) -> Mapping[Tap, int]:
        return self._shards.sources[0].manifest.taps

    @property
    def storage_dtypes(self) -> tuple[str, ...]:
        """As what activations are stored; workers may differ."""
        return tuple(sorted({source.manifest.storage_dtype for source in self._shards.sources}))

    @property
    def model_path(self) -> str:
        """The model that the activations are of, as the first worker had it."""
        return self._shards.sources[0].manifest.model_path

    @property
    def tokens(self) -> int:
        """How many tokens it has."""
        return sum(source.manifest.tokens for source in self._shards.sources)

    @property
    def complete(self) -> bool:
        """Whether every run has reached its end."""
        return all(source.manifest.complete for source in self._shards.sources)

    def __len__(self) -> int:
        return self._shards.first_samples[-1]

    @overload
    def __getitem__(self, index: int) -> ActivationSample: ...
    @overload
    def __getitem__(self, index: slice) -> list[ActivationSample]: ...
    def __getitem__(self, index: int | slice) -> ActivationSample | list[ActivationSample]:
        """A sample by its place in the dataset, which is not its `sample_idx`; or some of them."""
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        number = exact_int(index)
        if not -len(self) <= number < len(self):
            raise IndexError(f"{self.path}: has {len(self)} samples, there is none at {number}")
        number %= len(self)
        shard = bisect_right(self._shards.first_samples, number) - 1
        return self._sample(shard, number - self._shards.first_samples[shard])

    def batches(
        self,
        batch_size: int,
        *,
        layers: Sequence[int] | None = None,
        sites: Sequence[Site] | None = None,
        seed: int = 0,
        shuffle: bool = True,
        rank: int = 0,
        world_size: int = 1,
        exclude: Collection[Flag] = (),
        include: Collection[str] = (),
        role: str | Collection[str] = (),
        sink_factor: float = SINK_FACTOR,
        columns: Collection[str] = ("token_ids",),
        drop_last: bool = False,
        as_: Framework = "numpy",
        dtype: Dtype | None = None,
        pool_tokens: int = 131_072,
        piece_tokens: int = 1024,
    ) -> Batches:
        """All tokens, each once an epoch, as batches of [tokens, taps, width]; see `BatchConfig`
        for what is asked.

        `layers` and `sites` stand for all where they are left out; the taps are every layer at the
        first site, then at the next. Raises UsageError where they are not there.
        """
        at_layers, at_sites = self.layers if layers is None else layers, self.sites if sites is None else sites
        config = BatchConfig(
            batch_size=batch_size,
            taps=tuple(self._tap(layer, site) for site in at_sites for layer in at_layers),
            seed=seed,
            shuffle=shuffle,
            rank=rank,
            world_size=world_size,
            exclude=frozenset(exclude),
            include=frozenset(include),
            role=frozenset({role} if isinstance(role, str) else role),
            sink_factor=sink_factor,
            columns=tuple(columns),
            drop_last=drop_last,
            as_=as_,
            dtype=dtype,
            pool_tokens=pool_tokens,
            piece_tokens=piece_tokens,
        )
        self._require_columns({*config.columns, *(("role", "cells") if config.selections else ())})
        if dtype is None and len(self.storage_dtypes) > 1:
            raise UsageError(f"{self.path}: is stored as {' and '.join(self.storage_dtypes)}; give dtype=")
        widths = tuple(self._widths[tap] for tap in config.taps)
        return Batches(self._shards, config, widths, dtype or self.storage_dtypes[0])

    def close(self) -> None:
        """Let go of connections; what was handed out stays."""
        self._store.close()

    def __repr__(self) -> str:
        return (
            f"ActivationDataset({self.path!r}): {len(self)} samples, {self.tokens} tokens, layers {list(self.layers)},"
            f" {', '.join(self.sites)}, from {len(self._shards.sources)} folders"
        )

    def _tap(self, layer: int, site: Site | None) -> Tap:
        if site is None and len(self.sites) > 1:
            raise UsageError(f"{self.path}: has several sites; say which: {', '.join(self.sites)}")
        tap = Tap(layer, self.sites[0] if site is None else site)
        if tap not in self._widths:
            raise UsageError(
                f"{self.path}: holds layers {', '.join(map(str, self.layers))} at {', '.join(self.sites)},"
                f" not layer {layer} at {tap.site}"
            )
        return tap

    def _require_columns(self, names: Set[str]) -> None:
        """Refuse to ask for columns that a run did not store; positions are known without it."""
        for source in self._shards.sources:
            missing = sorted(names - source.manifest.columns.keys() - {"positions"})
            if missing:
                raise UsageError(
                    f"{self.path}/{source.name}: has no column {', '.join(missing)}: it was extracted by a version"
                    " without; extract it again, or ask for other columns, and no include or role"
                )

    def _content(self, shard: int) -> Shard:
        """A shard for looking at samples; the last one of pickles is kept."""
        return self._shards.content(shard) if self._shards.by_parts[shard] else self._last_pickled(shard)

    def _sample(self, shard: int, number: int) -> ActivationSample:
        return ActivationSample(self._content(shard), number, self._shards[shard][0].name, self._tap)

    def _describe(self, source: int, sample_idx: int) -> Described:
        chosen = self._shards.sources[source]
        shard = next(
            number
            for number, (owner, entry) in enumerate(self._shards)
            if owner is chosen and any(first <= sample_idx <= last for first, last in entry.sample_idx)
        )
        held = self._content(shard).sample_idx().tolist()
        if sample_idx not in held:
            raise DamageError(f"{self.path}/{chosen.name}: sample {sample_idx} is not where the manifest says")
        sample = self._sample(shard, held.index(sample_idx))
        return described(sample.task_id, sample.origin, sample.positions, sample.token_ids)
