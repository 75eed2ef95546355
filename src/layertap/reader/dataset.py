"""`ActivationDataset`: the output of one or many runs, read as one dataset.

Opening it reads only the manifests (in a bucket: one listing, and one request per worker). Samples
and batches then read only the bytes that they need (sample.py, batches.py).
"""

import html
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence, Set
from functools import cached_property, lru_cache
from operator import index as exact_int
from pathlib import Path
from typing import overload

from layertap.core.taps import SITES, Site, Tap
from layertap.errors import DamageError, PromptError, UsageError
from layertap.objects import open_store
from layertap.objects.base import ObjectStore
from layertap.reader.asking import BatchSource
from layertap.reader.batches import Batches, make_layout
from layertap.reader.config import BatchConfig
from layertap.reader.measuring import choose_normalisation
from layertap.reader.overlap import Described, describe_sample, require_each_once
from layertap.reader.sample import Sample, describe_taps
from layertap.reader.shards import Shards
from layertap.reader.sources import find_sources, require_prefix_flags
from layertap.shards.manifest import Manifest
from layertap.shards.shard import Shard


class ActivationDataset(Sequence[Sample], BatchSource[Batches]):
    """The samples of any number of workers below a folder, `gs://bucket/prefix` or other fsspec
    URL.

        dataset = layertap.ActivationDataset("gs://my-bucket/activations")
        dataset[0].activation(layer=12)         # [tokens, hidden]
        for batch in dataset.batches(4096, layers=[12], exclude={"first", "sink"}, as_="torch"):
            batch.activations                   # [4096, 1, hidden]

    It does not see shards that are committed later. Raises UsageError if there is no run, if runs
    cannot be combined, or if they hold the same samples; DamageError if a manifest is damaged.
    """

    def __init__(
        self, path: str | Path, *, sharded_dataset: str | None = None, tokenizer: str | Path | None = None
    ) -> None:
        """Open the dataset at `path`.

        `sharded_dataset` is the place of a claimed dataset's done-manifests, which record the
        attempts that count. `tokenizer` is a folder with the model's tokenizer, for `sample.text`,
        if the run's own `model_path` is not on this machine.
        """
        self._tokenizer = tokenizer
        self._store = open_store(str(path))
        self.path = self._store.url
        self._shards = Shards(find_sources(self._store, sharded_dataset))
        self._last_pickled = lru_cache(maxsize=1)(self._shards.content)
        require_each_once(self.path, self._shards.sources, self._describe)

    @property
    def sources(self) -> tuple[str, ...]:
        """The output folders below `path`."""
        return tuple(source.name for source in self._shards.sources)

    @property
    def shards(self) -> Shards:
        """The shards, in order."""
        return self._shards

    @property
    def runs(self) -> tuple[tuple[ObjectStore, Manifest], ...]:
        """The files and the manifest of each folder."""
        return tuple((source.store, source.manifest) for source in self._shards.sources)

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
        """The width of an activation; raises UsageError if sites have different widths."""
        widths = set(self.taps.values())
        if len(widths) > 1:
            raise UsageError(f"{self.path}: its sites differ in width; ask for width(layer, site)")
        return widths.pop()

    def width(self, layer: int, site: Site | None = None) -> int:
        """Return how many numbers an activation has at this layer and site."""
        return self.taps[self.tap(layer, site)]

    @property
    def taps(self) -> Mapping[Tap, int]:
        """Every extracted (layer, site), with its width."""
        return self._shards.sources[0].manifest.taps

    @property
    def storage_dtypes(self) -> tuple[str, ...]:
        """The dtypes in which activations are stored; workers may differ."""
        return tuple(sorted({source.manifest.storage_dtype for source in self._shards.sources}))

    @property
    def dtypes(self) -> tuple[str, ...]:
        """As what activations are read: as they are stored, or float32 where that is quantised."""
        return tuple(sorted({source.manifest.read_as for source in self._shards.sources}))

    @property
    def model_path(self) -> str:
        """The model of the activations, as the first worker named it."""
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
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> list[Sample]: ...
    def __getitem__(self, index: int | slice) -> Sample | list[Sample]:
        """Return one sample, or a slice, by its index in the dataset, which is not its
        `sample_idx`.
        """
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        number = exact_int(index)
        if not -len(self) <= number < len(self):
            raise IndexError(f"{self.path}: has {len(self)} samples, and none at index {number}")
        number %= len(self)
        shard = bisect_right(self._shards.first_samples, number) - 1
        return self._sample(shard, number - self._shards.first_samples[shard])

    def sample(self, sample_idx: int, source: str | None = None) -> Sample:
        """Return the sample with this `sample_idx`; `dataset[i]` goes by the index in the dataset.

        `source` is its folder, if several folders have that number. Raises KeyError if there is no
        such sample, UsageError if there are several.
        """
        wanted = exact_int(sample_idx)
        if source is not None and source not in self.sources:
            raise UsageError(f"{self.path}: has no folder {source!r}; it has {', '.join(map(repr, self.sources))}")
        found = [
            (number, owner)
            for number, (owner, entry) in enumerate(self._shards)
            if source in (None, owner.name) and any(first <= wanted <= last for first, last in entry.sample_idx)
        ]
        if not found:
            raise KeyError(f"{self.path}: has no sample_idx {wanted}; dataset[i] takes a sample by its index")
        if len(found) > 1:
            names = ", ".join(repr(owner.name) for _, owner in found)
            raise UsageError(f"{self.path}: sample_idx {wanted} is in several folders; give source=, one of {names}")
        return self._sample_at(found[0][0], wanted)

    def _make_batches(self, config: BatchConfig) -> Batches:
        self._require_columns({*config.columns, *(("role", "cells") if config.selections else ())})
        if "prefix" in config.exclude:
            require_prefix_flags(self.path, self._shards.sources)
        layout = make_layout(self.path, self._shards, config)
        return Batches(self._shards, layout, config, choose_normalisation(self._shards, config))

    def close(self) -> None:
        """Close connections. Samples and batches that you have stay valid."""
        self._store.close()

    @cached_property
    def decode(self) -> Callable[[Sequence[int]], str]:
        """A function from token ids to text, with the tokenizer of the run.

        Raises UsageError if that tokenizer is not on this machine, or has changed.
        """
        from layertap.prompts.tokenizer import find_tokenizer  # reading numbers does not need it

        place = self.model_path if self._tokenizer is None else str(self._tokenizer)
        try:
            tokenizer = find_tokenizer(place)
        except (UsageError, PromptError) as error:
            raise UsageError(f"{self.path}: no tokenizer for the text: {error}; give tokenizer=FOLDER") from error
        if tokenizer.digest != self._shards.sources[0].manifest.identity.get("prompts", {}).get("tokenizer"):
            raise UsageError(
                f"{self.path}: the tokenizer of {place} is not the one of the run, so its text may differ from what the"
                " model read; give tokenizer=, a folder with the run's tokenizer"
            )
        return tokenizer.decode

    def __repr__(self) -> str:
        return "\n".join(self._lines())

    def _repr_html_(self) -> str:
        """Show the same facts in a notebook."""
        return f"<div>{'<br>'.join(html.escape(line) for line in self._lines())}</div>"

    def _lines(self) -> list[str]:
        """Describe the dataset in three lines, from the manifests alone."""
        state = "complete" if self.complete else "not complete"
        folders = len(self.sources)
        return [
            f"ActivationDataset {self.path}: {len(self)} samples, {self.tokens} tokens, {state}",
            f"{self.model_path}: {describe_taps(self.taps)}, stored as {' and '.join(self.storage_dtypes)}",
            f"{'1 folder' if folders == 1 else f'{folders} folders'}; dataset[i] takes a sample by its index,"
            " dataset.sample(sample_idx) by its number",
        ]

    def _require_columns(self, names: Set[str]) -> None:
        """Refuse columns that a run did not store; positions need not be stored."""
        for source in self._shards.sources:
            missing = sorted(names - source.manifest.columns.keys() - {"positions"})
            if missing:
                raise UsageError(
                    f"{self.path}/{source.name}: has no column {', '.join(missing)}, because an older version extracted"
                    " it; extract it again, or use other columns, without include and role"
                )

    def _content(self, shard: int) -> Shard:
        """Return a shard to look at samples; the last pickled one is kept."""
        return self._shards.content(shard) if self._shards.by_parts[shard] else self._last_pickled(shard)

    def _sample(self, shard: int, number: int) -> Sample:
        return Sample(self._content(shard), number, self._shards[shard][0].name, self)

    def _describe(self, source: int, sample_idx: int) -> Described:
        chosen = self._shards.sources[source]
        shard = next(
            number
            for number, (owner, entry) in enumerate(self._shards)
            if owner is chosen and any(first <= sample_idx <= last for first, last in entry.sample_idx)
        )
        sample = self._sample_at(shard, sample_idx)
        return describe_sample(sample.task_id, sample.origin, sample.positions, sample.token_ids)

    def _sample_at(self, shard: int, sample_idx: int) -> Sample:
        held = self._content(shard).sample_idx().tolist()
        if sample_idx not in held:
            name = self._shards[shard][0].name
            raise DamageError(
                f"{self.path}/{name}: sample {sample_idx} is not where the manifest says; check with `layertap verify`"
            )
        return self._sample(shard, held.index(sample_idx))
