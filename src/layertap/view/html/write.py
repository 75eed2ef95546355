"""The page: a template, and in it style, program and data.

Data is written sample by sample: memory is bounded by a sample's activations and by the norms of a
shard (of pickles by a shard), and not by the page. Texts of
the run are never markup: what is JSON has `<` escaped, what is not is base64, and the program of
the page only ever sets text. The page's Content-Security-Policy allows nothing from elsewhere.
"""

import base64
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
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
from layertap.shards.statistics import TapStatistics
from layertap.shards.statistics_files import merge_runs
from layertap.view.html.asked import resolve_asked
from layertap.view.html.figures import Asked, measure_tokens
from layertap.view.html.payload import pack_sample, shorten
from layertap.view.html.run import describe_run

_LEAST_TOKENS = 32


def write_page(config: ViewConfig, show: Callable[[int, int], None] = lambda _done, _total: None) -> tuple[Path, str]:
    """Write the page that `config` asks for; returns where, and a sentence of what is in it.

    Raises UsageError for what is not there, DamageError for what cannot be believed, StorageError
    where the page cannot be written.
    """
    path = local_path(config.out)
    with closing(ActivationDataset(config.path, tokenizer=config.tokenizer)) as dataset:
        taps = _choose_taps(dataset, config)
        asked = resolve_asked(config, dataset, taps)
        statistics = merge_runs(dataset.runs)
        run = describe_run(dataset, taps, statistics, show)
        with atomic_write(path) as file:
            _write(file, _opening(run, asked))
            shown: list[dict[str, Any]] = []
            for sample in _samples(dataset, config):
                listed = [*shown, _entry(sample, taps)]
                left = (
                    int(config.max_mb * 1e6) - file.size - len((_element(len(shown), "") + _closing(listed)).encode())
                )
                packed = _pack(sample, taps, statistics, asked, left, alone=not shown)
                if packed is None:
                    break
                _write(file, _element(len(shown), packed))
                shown = listed
            _write(file, _closing(shown))
        return path, _sentence(path, dataset, len(shown), path.stat().st_size)


def _pack(
    sample: Sample,
    taps: Sequence[Tap],
    statistics: Mapping[Tap, TapStatistics],
    asked: Asked,
    left: int,
    *,
    alone: bool,
) -> str | None:
    """The sample in at most `left` bytes; one that is `alone` is cut for that, others are left out
    (None).
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
    """By site, then by layer."""
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
    """What the list of samples shows and sorts by."""
    norms = [sample.norms(*tap) for tap in taps]
    largest = max((float(own[own < float("inf")].max(initial=0)) for own in norms), default=0.0)
    return {
        "sample_idx": sample.sample_idx,
        "source": shorten(sample.source),
        "task": shorten(sample.task_id),
        "tokens": len(sample),
        "largest": largest,
    }


def _told(asked: Asked) -> dict[str, Any] | None:
    """Where the features on the page are of."""
    return None if asked.tap is None else {"layer": asked.tap.layer, "site": asked.tap.site}


def _opening(run: dict[str, Any], asked: Asked) -> str:
    style, program = _asset("view.css"), _asset("view.js")
    hashed = base64.b64encode(hashlib.sha256(program.encode()).digest()).decode()
    return (
        _asset("head.html").replace("{{program_hash}}", hashed).replace("{{style}}", style)
        + _asset("body.html")
        + _script("run", run | {"names": list(asked.names), "sae": _told(asked)})
    )


def _element(number: int, packed: str) -> str:
    """A packed sample in the page."""
    return f'<script type="text/plain" id="sample-{number}">{packed}</script>\n'


def _closing(shown: Sequence[Mapping[str, Any]]) -> str:
    return f"{_script('samples', shown)}<script>{_asset('view.js')}</script>\n</body>\n</html>\n"


def _script(name: str, value: object) -> str:
    """JSON in a page: `<` is escaped, so that no text ends the element."""
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
