"""The page: a template with style, program and data.

Data is written sample by sample. So memory holds a sample's activations and the norms of a shard
(with pickles, a whole shard), but not the page. Texts of the run never become markup: JSON has `<`
escaped, everything else is base64, and the page's program only sets text. The page's
Content-Security-Policy allows nothing from other places.
"""

import base64
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict
from functools import cache, partial
from importlib.resources import files
from pathlib import Path
from typing import Any

from layertap.config.extract import local_path
from layertap.config.view import ViewConfig
from layertap.core.strict_json import dump_json
from layertap.core.taps import Tap
from layertap.errors import UsageError
from layertap.objects.files import Checksummed, atomic_write
from layertap.reader.dataset import ActivationDataset
from layertap.reader.sample import Sample
from layertap.sae.autoencoder import Autoencoder
from layertap.sae.count import count_features
from layertap.sae.table import FeatureTable
from layertap.shards.statistics import TapStatistics
from layertap.shards.statistics_files import merge_runs
from layertap.view.html.asked import Count, resolve_asked
from layertap.view.html.features_part import write_features
from layertap.view.html.figures import Asked, measure_tokens
from layertap.view.html.neuronpedia import write_uploads
from layertap.view.html.payload import pack_sample, shorten
from layertap.view.html.run import describe_run

_LEAST_TOKENS = 32
_PROGRAM = (
    "data",
    "numbers",
    "colours",
    "drawing",
    "grids",
    "run",
    "sample",
    "prompt",
    "features",
    "lists",
    "feature",
    "tops",
    "state",
    "listen",
)


def write_page(
    config: ViewConfig,
    show: Callable[[int, int], None] = lambda _done, _total: None,
    count: Count | None = None,
) -> tuple[Path, str]:
    """Write the page that `config` asks for, and Neuronpedia's files if it asks for them.

    Returns the path of the page, and a sentence about what was written. `count` makes the table of
    an autoencoder; without it, features are counted over the run. Raises UsageError for something
    that does not exist, DamageError for a damaged file, StorageError where the page cannot be
    written.
    """
    path = local_path(config.out)
    with closing(ActivationDataset(config.path, tokenizer=config.tokenizer)) as dataset:
        taps = _choose_taps(dataset, config)
        if config.neuronpedia is not None or config.tokenizer is not None:
            _ = dataset.decode  # raises for a missing tokenizer, before anything is counted
        asked = resolve_asked(config, dataset, taps, count or partial(_count, show))
        statistics = merge_runs(dataset.runs)
        run = describe_run(dataset, taps, statistics, show)
        with atomic_write(path) as file:
            _write(file, _opening(run, asked))
            told = _write_features(file, dataset, asked, int(config.max_mb * 1e6))
            shown: list[dict[str, Any]] = []
            for sample in _samples(dataset, config):
                listed = [*shown, _entry(sample, taps)]
                left = (
                    int(config.max_mb * 1e6)
                    - file.size
                    - len((_element(f"sample-{len(shown)}", "") + _closing(listed)).encode())
                )
                packed = _pack(sample, taps, statistics, asked, left, alone=not shown)
                if packed is None:
                    break
                _write(file, _element(f"sample-{len(shown)}", packed))
                shown = listed
            _write(file, _closing(shown))
        told += write_uploads(config, dataset, asked, show)
        return path, _sentence(path, dataset, len(shown), path.stat().st_size) + told


def _count(
    show: Callable[[int, int], None], dataset: ActivationDataset, autoencoder: Autoencoder, tap: Tap
) -> FeatureTable:
    """Count the features of a run. `show` is called with bytes, as for everything that is read."""
    size = 4 * autoencoder.width
    return count_features(dataset, autoencoder, tap, show=lambda done, total: show(done * size, total * size))


def _write_features(file: Checksummed, dataset: ActivationDataset, asked: Asked, most: int) -> str:
    """Write the features of the page, in half of what is left of `most` bytes.

    Returns a sentence about them.
    """
    if not asked.featured:
        return ""
    room = (most - file.size - len(_closing([]).encode())) // 2
    shown, places = write_features(
        lambda name, packed: _write(file, _element(name, packed)), dataset, asked.featured, room
    )
    told = {
        "drawn": [list(own.drawn) for own in asked.featured],
        "named": any(own.named for own in asked.featured),
        "places": places,
        "shown": asdict(shown),
    }
    _write(file, _script("features", told))
    return shown.sentence


def _pack(
    sample: Sample,
    taps: Sequence[Tap],
    statistics: Mapping[Tap, TapStatistics],
    asked: Asked,
    left: int,
    *,
    alone: bool,
) -> str | None:
    """Pack the sample into at most `left` bytes.

    A sample that is `alone` is cut to fit. For any other that does not fit, return None.
    """
    tokens = len(sample)
    while tokens >= _LEAST_TOKENS or tokens == len(sample):
        figures = measure_tokens(sample, taps, statistics, asked, tokens)
        packed = pack_sample(sample, figures, taps)
        if len(packed) <= left:
            return packed
        if not alone:
            return None
        tokens = min(tokens - 1, int(tokens * left / len(packed) * 0.95))
    raise UsageError("--max_mb: not even the beginning of a sample fits; give more, or fewer --layers")


def _choose_taps(dataset: ActivationDataset, config: ViewConfig) -> list[Tap]:
    """Return the taps to show, by site, then by layer."""
    sites, layers = config.sites or dataset.sites, sorted(set(config.layers or dataset.layers))
    return [dataset.tap(layer, site) for site in sites for layer in layers]


def _samples(dataset: ActivationDataset, config: ViewConfig) -> Iterator[Sample]:
    if config.samples:
        for number in config.samples[: config.max_samples]:
            try:
                yield dataset.sample(number)
            except KeyError as error:
                raise UsageError(f"--samples {number}: {error.args[0]}") from error
    else:
        yield from (dataset[place] for place in range(min(len(dataset), config.max_samples)))


def _entry(sample: Sample, taps: Sequence[Tap]) -> dict[str, Any]:
    """Return what the list of samples shows and sorts by."""
    norms = [sample.norms(*tap) for tap in taps]
    largest = max((float(own[own < float("inf")].max(initial=0)) for own in norms), default=0.0)
    return {
        "sample_idx": sample.sample_idx,
        "source": shorten(sample.source),
        "task": shorten(sample.task_id),
        "tokens": len(sample),
        "largest": largest,
    }


def _opening(run: dict[str, Any], asked: Asked) -> str:
    hashed = base64.b64encode(hashlib.sha256(_program().encode()).digest()).decode()
    told = {
        "names": list(asked.names),
        "features": list(asked.features),
        "saes": [{"name": own.name, "layer": own.tap.layer, "site": own.tap.site} for own in asked.featured],
    }
    return (
        _asset("head.html").replace("{{program_hash}}", hashed).replace("{{style}}", _asset("view.css"))
        + _asset("body.html")
        + _script("run", run | told)
    )


def _element(name: str, packed: str) -> str:
    """Return a page element that holds packed data."""
    return f'<script type="text/plain" id="{name}">{packed}</script>\n'


def _closing(shown: Sequence[Mapping[str, Any]]) -> str:
    return f"{_script('samples', shown)}<script>{_program()}</script>\n</body>\n</html>\n"


@cache
def _program() -> str:
    """Return the files of the program, joined."""
    return "\n".join(_asset(f"{name}.js") for name in _PROGRAM)


def _script(name: str, value: object) -> str:
    """Return an element with JSON. It escapes `<`, so that no text ends the element."""
    text = dump_json(value).replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
    return f'<script type="application/json" id="{name}">{text}</script>\n'


def _asset(name: str) -> str:
    return files("layertap.view.html").joinpath("assets", name).read_text(encoding="utf-8")


def _write(file: Checksummed, text: str) -> None:
    file.write(text.encode())


def _sentence(path: Path, dataset: ActivationDataset, shown: int, size: int) -> str:
    left = len(dataset) - shown
    more = f"; {left} more are not shown (--max_samples, --max_mb, --samples)" if left else ""
    return f"{path}: {shown} samples of {dataset.path}, {size / 1e6:.1f} MB{more}"
