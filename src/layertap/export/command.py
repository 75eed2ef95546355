"""`layertap export`: copy a dataset into a folder of another format, shard by shard.

    records of a shard -> its files -> a note that it is there     for each shard, in order
    the files that make a reader accept the folder                 when all shards are there
    records of a shard, made again = what its files hold           for each shard: the check

The check reads the source a second time. That costs the same again, but finds what a checksum of
the written bytes cannot: a bug in the format itself.
"""

from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

from layertap.config.export import ExportConfig
from layertap.export.form import Form
from layertap.export.hf import HuggingFaceForm
from layertap.export.ledger import Ledger
from layertap.export.memmap import MemmapForm
from layertap.export.saelens import SaeLensForm
from layertap.export.source import Source, Wanted
from layertap.export.summary import describe
from layertap.reader.blocks import numpy_dtype
from layertap.reader.dataset import ActivationDataset

Show = Callable[[int, int], None]
"""Gets the bytes done and the total."""


def export(config: ExportConfig, show: Show) -> str:
    """Export as `config` says, or resume; return a description of the result.

    Raises UsageError if the source is empty or the folder holds something else, InputError if a
    value does not fit the dtype, StorageError if a file cannot be written, DamageError if the check
    finds a difference.
    """
    with closing(ActivationDataset(config.source, sharded_dataset=config.sharded_dataset)) as dataset:
        source = Source(dataset, _wanted(config), ["token_ids"] if config.to == "saelens" else None)
        form = _make_form(config, source)
        ledger = Ledger(form.folder, _plan(config, source, form), config.source)
        progress = _Progress(source, show, times=2 if config.check else 1)
        _write(form, ledger, progress)
        form.finish()
        ledger.complete({name: form.total(name) for name in ("tokens", "rows", "left_out")})
        if config.check:
            _check(form, progress)
        return describe(form, config.to, checked=config.check)


def _wanted(config: ExportConfig) -> Wanted:
    return Wanted(config.layers, config.sites, frozenset(config.exclude), frozenset(config.include))


def _make_form(config: ExportConfig, source: Source) -> Form:
    folder = Path(config.destination).expanduser()
    dtype = numpy_dtype(config.dtype or _default_dtype(config.to, source))
    if config.to == "saelens":
        return SaeLensForm(source, folder, dtype, config.context_size)
    return HuggingFaceForm(source, folder, dtype) if config.to == "hf" else MemmapForm(source, folder, dtype)


def _default_dtype(to: str, source: Source) -> str:
    stored = source.dataset.dtypes
    if len(stored) > 1:
        return "float32"
    return "float32" if stored == ("bfloat16",) and to != "memmap" else stored[0]


def _plan(config: ExportConfig, source: Source, form: Form) -> dict[str, Any]:
    """Return everything that decides the bytes."""
    return {
        "to": config.to,
        "dataset": source.digest,
        "taps": {form.name_of(tap): [tap.layer, tap.site, width] for tap, width in source.widths.items()},
        "columns": list(source.columns),
        "dtype": form.dtype.name,
        "exclude": sorted(config.exclude),
        "include": sorted(config.include),
        **form.settings(),
    }


class _Progress:
    """Counts the bytes of activations done, in their stored dtype."""

    def __init__(self, source: Source, show: Show, times: int) -> None:
        self._source = source
        self._show = show
        self._token_bytes = source.token_values * numpy_dtype(source.dataset.dtypes[0]).itemsize
        self._total = times * sum(map(source.tokens, range(len(source)))) * self._token_bytes
        self._done = 0

    def of(self, shard: int) -> Callable[[int], None]:
        """Return a function to call with the number of tokens just done of this shard."""
        begin = self._done
        self._done += self._source.tokens(shard) * self._token_bytes
        done = 0

        def show(tokens: int) -> None:
            nonlocal done
            done += tokens
            self._show(begin + done * self._token_bytes, self._total)

        return show

    def passed(self) -> None:
        """Report that all tokens of the last shard are done, also those left out."""
        self._show(self._done, self._total)


def _write(form: Form, ledger: Ledger, progress: _Progress) -> None:
    for shard in range(len(form.source)):
        show = progress.of(shard)
        part = ledger.part(shard)
        if part is None:
            made = form.export(shard, show)
            form.parts.append(made)
            part = ledger.commit(shard, made, form.files(shard))
        else:
            form.parts.append(part)
        progress.passed()


def _check(form: Form, progress: _Progress) -> None:
    for shard in range(len(form.source)):
        form.check(shard, progress.of(shard))
        progress.passed()
