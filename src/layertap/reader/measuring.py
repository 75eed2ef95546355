"""Measure the normalisation of a dataset's batches, from as little data as possible.

    center  tokens left out  from                                               exact
    no      none             the statistics beside the shards                   yes
    yes     none             the statistics beside the shards                   yes
    no      some             the stored norms of the selected tokens            to float32
    yes     some             SOME_TOKENS selected, from all over the dataset    an estimate

Only the selected tokens may count, because in these models a few sinks can hold nine tenths of
E||x||^2 and move the mean of a channel by two standard deviations. The norms of all tokens are
stored, so E||x|| and E||x||^2 of any selection are known; a mean is not. The estimate reads some
tokens, one piece at a time, so it needs little memory. It is exact if the dataset has no more
tokens. It does not depend on the seed, the rank or the place of the files. Non-finite tokens never
count.
"""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace

import numpy as np

from layertap.core.taps import Tap
from layertap.errors import UsageError
from layertap.reader.blocks import Block
from layertap.reader.choice import choose_tokens
from layertap.reader.config import BatchConfig
from layertap.reader.pieces import Cursor, Pieces, ShardTokens, Share, Supply
from layertap.reader.scaling import AffineMap, Normalisation, factor_of
from layertap.reader.shards import Shards
from layertap.reader.workers import dismiss
from layertap.shards.statistics import TapStatistics, measure, no_statistics
from layertap.shards.statistics_files import merge_runs

SOME_TOKENS = 131_072
"""How many tokens are read to estimate means."""


def choose_normalisation(shards: Shards, config: BatchConfig) -> Normalisation | None:
    """Return the normalisation for batches of these shards, given or measured; None if not
    requested.

    Raises UsageError if there is nothing to measure.
    """
    if config.normalisation is not None or not config.normalises:
        return config.normalisation
    if not config.leaves_out:
        return _from_files(shards, config)
    return _from_some(shards, config) if config.center else _from_norms(shards, config)


def measure_pool(pool: Block, config: BatchConfig) -> dict[Tap, TapStatistics]:
    """Measure the statistics of each tap over a pool; non-finite tokens do not count."""
    return _measure(config.taps, [np.asarray(pool.tap(number)) for number in range(len(config.taps))])


def _measure(taps: Sequence[Tap], arrays: Sequence[np.ndarray]) -> dict[Tap, TapStatistics]:
    return {tap: measure(array.reshape(-1, array.shape[-1]), 0)[0] for tap, array in zip(taps, arrays, strict=True)}


def _from_files(shards: Shards, config: BatchConfig) -> Normalisation:
    merged = merge_runs([(source.store, source.manifest) for source in shards.sources])
    missing = [f"layer {tap.layer} at {tap.site}" for tap in config.taps if tap not in merged]
    if missing:
        raise UsageError(
            f"there are no statistics of {', '.join(missing)} beside the shards; extract again, or give normalisation="
        )
    statistics = {tap: merged[tap] for tap in config.taps}
    return _made(statistics, config, f"the statistics of all {statistics[config.taps[0]].count} tokens")


def _from_some(shards: Shards, config: BatchConfig) -> Normalisation:
    """Read tokens from all over the dataset, and measure them piece by piece."""
    plain = replace(
        BatchConfig(batch_size=1, taps=config.taps),
        **{name: getattr(config, name) for name in ("exclude", "include", "role", "sink_factor")},
    )
    pieces, tokens = Pieces(shards, plain), 0
    statistics = {tap: no_statistics(shards.sources[0].manifest.taps[tap]) for tap in plain.taps}
    with ExitStack() as stack:
        supply = Supply(pieces, Share(pieces.order(0), Cursor(0, 0), SOME_TOKENS))
        stack.callback(dismiss, [supply.readers])
        for rows in supply.take(SOME_TOKENS):
            part = _measure(plain.taps, rows.activations)
            statistics = {tap: own.merge(part[tap]) for tap, own in statistics.items()}
            tokens += len(rows)
    return _made(statistics, config, f"{tokens} of the selected tokens, from all over")


def _made(statistics: Mapping[Tap, TapStatistics], config: BatchConfig, measured: str) -> Normalisation:
    if not all(own.count for own in statistics.values()):
        raise UsageError("no selected token is finite, so no normalisation can be measured; give normalisation=")
    return Normalisation.of(statistics, config.center, config.scale, measured)


def _from_norms(shards: Shards, config: BatchConfig) -> Normalisation:
    """Measure the selected tokens; reads flags or labels, and norms."""

    def sums(shard: int) -> np.ndarray:
        content, tokens = shards.content(shard), shards.tokens[shard]
        own = ShardTokens(content, 0, tokens)
        chosen = choose_tokens(own, config, tokens)
        norms = [own.norms(tap)[chosen].astype(np.float64) for tap in config.taps]
        finite = [values[np.isfinite(values)] for values in norms]
        return np.array([[len(values), values.sum(), (values * values).sum()] for values in finite])

    totals = sum(shards.each(sums), np.zeros((len(config.taps), 3)))
    if not totals[:, 0].all():
        raise UsageError("no selected token is finite, so no normalisation can be measured; give normalisation=")
    maps = {}
    for tap, (count, norm, square) in zip(config.taps, totals.tolist(), strict=True):
        width = shards.sources[0].manifest.taps[tap]
        factor = factor_of(tap, config.scale, width, norm / count, square / count)
        maps[tap] = AffineMap(np.zeros(width), factor)
    return Normalisation(maps, False, config.scale, f"the norms of the {int(totals[0, 0])} selected tokens")
