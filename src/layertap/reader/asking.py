"""The arguments of `batches`, defined once for datasets and streams.

A dataset and a stream differ in where tokens come from. Their arguments, and the checks of these,
are the same.
"""

import operator
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from numbers import Integral
from typing import Any, Generic, TypeVar

from layertap.core.columns import SINK_FACTOR
from layertap.core.taps import SITES, Site, Tap
from layertap.errors import UsageError
from layertap.reader.config import BatchConfig, Dtype, Flag, Framework
from layertap.reader.scaling import Normalisation, Scale

Pair = tuple[Site, int]
"""A site and a layer: how `inputs` and `targets` name a tap."""
BatchesT = TypeVar("BatchesT")


class BatchSource(ABC, Generic[BatchesT]):
    """Something with layers and sites that makes batches."""

    path: str
    """The name of the source in messages."""

    @property
    @abstractmethod
    def layers(self) -> tuple[int, ...]:
        """The layers that it has."""

    @property
    @abstractmethod
    def sites(self) -> tuple[Site, ...]:
        """The sites that it has."""

    @property
    @abstractmethod
    def taps(self) -> Mapping[Tap, int]:
        """Every (layer, site) that it has, with its width."""

    @abstractmethod
    def _make_batches(self, config: BatchConfig) -> BatchesT:
        """Make the batches that `config` describes."""

    def batches(
        self,
        batch_size: int,
        *,
        layers: int | Sequence[int] | None = None,
        sites: Site | Sequence[Site] | None = None,
        inputs: Pair | Sequence[Pair] | None = None,
        targets: Pair | Sequence[Pair] | None = None,
        seed: int = 0,
        shuffle: bool = True,
        rank: int = 0,
        world_size: int = 1,
        exclude: Flag | Collection[Flag] = (),
        include: str | Collection[str] = (),
        role: str | Collection[str] = (),
        sink_factor: float = SINK_FACTOR,
        sequence: int | None = None,
        center: bool = False,
        scale: Scale | None = None,
        normalisation: Normalisation | None = None,
        columns: Collection[str] = ("token_ids",),
        drop_last: bool = False,
        as_: Framework = "numpy",
        dtype: Dtype | None = None,
        pool_tokens: int = 131_072,
        piece_tokens: int = 1024,
    ) -> BatchesT:
        """Return all tokens, each once per epoch, as batches of [tokens, taps, width].

        `BatchConfig` describes the arguments. A single layer, site, flag or name needs no list.
        `layers` and `sites` default to all; the taps are every layer at the first site, then at the
        next. Instead of them, `inputs=("mlp_in", 12)` and `targets=("mlp", 12)`, or lists of such
        pairs, make batches with `inputs` and `targets`.

        With `center` or `scale`, `batches.normalisation` holds the map. It is measured on the
        selected tokens if that is cheap, else on some of them. Without `exclude` and `include` it
        is measured on all finite tokens, including sinks, which can dominate it (docs/reading.md).
        Activations are then float32, unless `dtype` is given.

        Raises UsageError if a tap is missing, or arguments contradict each other.
        """
        pairs = {"inputs": inputs, "targets": targets}
        sides = self._sides(pairs, layers is not None or sites is not None)
        at_layers = self.layers if layers is None else _several(layers)
        at_sites = self.sites if sites is None else _several(sites)
        taps = [self.tap(layer, site) for site in at_sites for layer in at_layers]
        return self._make_batches(
            BatchConfig(
                batch_size=_whole("batch_size", batch_size),
                taps=tuple(dict.fromkeys(sides["inputs"] + sides["targets"])) if sides["inputs"] else tuple(taps),
                inputs=sides["inputs"],
                targets=sides["targets"],
                single=frozenset(name for name, given in pairs.items() if _is_pair(given)),
                seed=_whole("seed", seed),
                shuffle=shuffle,
                rank=_whole("rank", rank),
                world_size=_whole("world_size", world_size),
                exclude=frozenset(_several(exclude)),
                include=frozenset(_several(include)),
                role=frozenset(_several(role)),
                sink_factor=sink_factor,
                sequence=None if sequence is None else _whole("sequence", sequence),
                center=center,
                scale=scale,
                normalisation=normalisation,
                columns=tuple(columns),
                drop_last=drop_last,
                as_=as_,
                dtype=dtype,
                pool_tokens=_whole("pool_tokens", pool_tokens),
                piece_tokens=_whole("piece_tokens", piece_tokens),
            )
        )

    def _sides(self, pairs: Mapping[str, object], other_taps: bool) -> dict[str, tuple[Tap, ...]]:
        """Return the taps of inputs and of targets."""
        given = [name for name, value in pairs.items() if value is not None]
        if len(given) == 1:
            other = "targets" if given == ["inputs"] else "inputs"
            raise UsageError(f"{given[0]} is only half of what a transcoder needs; give {other} too")
        if given and other_taps:
            raise UsageError("inputs and targets already choose the taps; leave out layers and sites")
        return {name: self._named(name, value) if given else () for name, value in pairs.items()}

    def _named(self, name: str, value: object) -> tuple[Tap, ...]:
        listed = [value] if _is_pair(value) else value
        if not isinstance(listed, Sequence) or not listed or not all(map(_is_pair, listed)):
            raise UsageError(f'{name}: give a site and a layer, such as ("mlp_in", 12), or a list of these')
        taps = tuple(self.tap(layer, site) for site, layer in listed)
        if len(set(taps)) < len(taps):
            raise UsageError(f"{name}: a tap is given twice")
        return taps

    def tap(self, layer: int, site: Site | None = None) -> Tap:
        """Return the tap of this layer and site; raises UsageError if it is missing."""
        return find_tap(self.taps, layer, site, self.path)


def find_tap(taps: Mapping[Tap, int], layer: int, site: Site | None, place: str) -> Tap:
    """Find the tap of this layer and site; None for the site means the only one.

    Raises UsageError, which names `place`, if the tap is missing or you must name a site.
    """
    sites = [known for known in SITES if any(tap.site == known for tap in taps)]
    if site is None and len(sites) > 1:
        raise UsageError(f"{place}: has several sites; give one of {', '.join(sites)}")
    tap = Tap(_whole("layer", layer), sites[0] if site is None else site)
    if tap not in taps:
        layers = ", ".join(map(str, sorted({known.layer for known in taps})))
        raise UsageError(f"{place}: holds layers {layers} at {', '.join(sites)}, not layer {layer} at {tap.site}")
    return tap


def _is_pair(value: object) -> bool:
    if not isinstance(value, Sequence) or len(value) != 2:
        return False
    return isinstance(value[0], str) and isinstance(value[1], Integral)


def _several(given: Any) -> Any:  # noqa: ANN401 - a collection of what was given
    """Return a single value as a list; a collection unchanged."""
    return [given] if isinstance(given, str | Integral) else given


def _whole(name: str, value: object) -> int:
    """Convert to Python's int, which states need; raises UsageError if it is not a whole number."""
    try:
        return operator.index(value)  # type: ignore[arg-type]
    except TypeError as error:
        raise UsageError(f"{name}={value!r}: give a whole number") from error
