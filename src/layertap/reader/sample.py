"""One sample, read as far as it is asked for: of a dataset, or as a model has just read it.

What is not asked for is not read, and activations of local safetensors are views of the mapped
file. A sample of a pickle holds on to its whole shard.

Tokens as text need the tokenizer of the model. It is looked for when it is first asked for, on this
machine alone, so that opening a dataset costs nothing and downloads nothing.
"""

import html
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any, Protocol

import numpy as np

from layertap.core.columns import NO_LABELS, ROLES, SINK
from layertap.core.taps import Site, Tap
from layertap.errors import UsageError
from layertap.reader.labels import Labels
from layertap.shards.shard import Words

_SHOWN_CHARACTERS = 72
_SHOWN_TOKENS = 12


class Content(Protocol):
    """What holds samples; a `Shard` is one. Rows are counted over the tokens of all of them."""

    def offsets(self) -> np.ndarray:
        """Where each sample begins, and the end of the last one; int64 [samples + 1]."""
        ...

    def sample_idx(self) -> np.ndarray:
        """The samples' numbers; int64 [samples]."""
        ...

    def words(self) -> list[Words]:
        """Of each sample."""
        ...

    def column(self, name: str, begin: int, end: int) -> np.ndarray:
        """A column at these rows."""
        ...

    def positions(self, begin: int, end: int) -> np.ndarray:
        """Where in its prompt each row's token is."""
        ...

    def activations(self, tap: Tap, begin: int, end: int) -> np.ndarray:
        """[rows, width]"""
        ...

    def norms(self, tap: Tap, begin: int, end: int) -> np.ndarray:
        """The Euclidean norm of each row; float32."""
        ...

    def sinks(self, tap: Tap, begin: int, end: int) -> np.ndarray:
        """Which rows are sinks; bool."""
        ...


class Context(Protocol):
    """What a sample needs to know of where it comes from."""

    @property
    def taps(self) -> Mapping[Tap, int]:
        """What it has activations of, with widths."""
        ...

    def tap(self, layer: int, site: Site | None) -> Tap:
        """The tap that is asked for; raises UsageError where there is none."""
        ...

    @property
    def decode(self) -> Callable[[Sequence[int]], str]:
        """Token ids to text; raises UsageError where the tokenizer is not at hand."""
        ...


class Sample:
    """A sequence of tokens that a model ran over, with its activations."""

    def __init__(self, content: Content, number: int, source: str, context: Context) -> None:
        self.source = source
        """The folder that it is from, below the dataset's; samples of several streams may have one
        `sample_idx`."""
        self._content = content
        self._number = number
        self._context = context

    @cached_property
    def sample_idx(self) -> int:
        """Its number in the run that it is from. `dataset.sample(sample_idx)` finds it; its place
        in the dataset, as in `dataset[i]`, may be another.
        """
        return int(self._content.sample_idx()[self._number])

    @property
    def task_id(self) -> str:
        """The task, or the document, that the prompt was made of."""
        return self._words.task_id

    @property
    def text_preview(self) -> str:
        """The prompt's first 200 characters."""
        return self._words.text_preview

    @property
    def origin(self) -> Mapping[str, Any]:
        """How the prompt was made of its task."""
        return self._words.origin

    @cached_property
    def token_ids(self) -> np.ndarray:
        """The prompt's tokens; int32 [tokens]."""
        return self.column("token_ids")

    @cached_property
    def text(self) -> str:
        """The whole text of the tokens, special ones included.

        Raises UsageError where this machine does not have the model's tokenizer.
        """
        return self._context.decode(self.token_ids.tolist())

    @cached_property
    def tokens(self) -> list[str]:
        """The text of each token by itself; one that is a part of a character gives `\ufffd`.

        Raises UsageError where this machine does not have the model's tokenizer.
        """
        decode, ids = self._context.decode, self.token_ids.tolist()
        words = {id_: decode([id_]) for id_ in set(ids)}
        return [words[id_] for id_ in ids]

    @property
    def positions(self) -> np.ndarray:
        """The place of each token in the prompt: 0, 1, 2, ..., but for tokens that were not kept;
        int32 [tokens].
        """
        return self._content.positions(*self._rows)

    @cached_property
    def labels(self) -> Labels:
        """Who says each token, and which cell of which grid it is; raises UsageError where the run
        was stored without labels.
        """
        return Labels(**{name: self.column(name) for name in NO_LABELS})

    def column(self, name: str) -> np.ndarray:
        """A column of the prompt's tokens, by its name; raises UsageError where the run stored
        none.
        """
        return self._content.column(name, *self._rows)

    def activation(self, layer: int, site: Site | None = None) -> np.ndarray:
        """What the site gave at each token; [tokens, width] in the dtype that it was stored or
        asked for in.

        `site` may be left out where there is one. Raises UsageError where that layer or site was
        not read.
        """
        return self._content.activations(self._context.tap(layer, site), *self._rows)

    def flags(self, layer: int, site: Site | None = None) -> np.ndarray:
        """First, special and sink tokens, as bits (docs/formats.md); which are sinks differs by
        layer and site.
        """
        sinks = self._content.sinks(self._context.tap(layer, site), *self._rows)
        return self.column("flags") | np.where(sinks, np.uint8(SINK), np.uint8(0))

    def norms(self, layer: int, site: Site | None = None) -> np.ndarray:
        """The Euclidean norm of each token's activation, as it is stored; float32 [tokens]."""
        return self._content.norms(self._context.tap(layer, site), *self._rows)

    def __len__(self) -> int:
        begin, end = self._rows
        return end - begin

    def __repr__(self) -> str:
        return "\n".join(self._lines())

    def _repr_html_(self) -> str:
        """As a notebook shows it: the same facts, and the first tokens with their roles."""
        facts = "<br>".join(html.escape(line) for line in self._lines())
        head = "".join(f"<th>{name}</th>" for name in ("position", "id", "token", "role"))
        rows = "".join(f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row)}</tr>" for row in self._first())
        left = len(self) - _SHOWN_TOKENS
        more = f"<p>and {left} more tokens</p>" if left > 0 else ""
        return f"<div><p>{facts}</p><table><tr>{head}</tr>{rows}</table>{more}</div>"

    def _lines(self) -> list[str]:
        """What a person wants to know, in three lines; nothing but small facts is read for it."""
        preview = " ".join(self.text_preview.split())
        cut = preview[:_SHOWN_CHARACTERS] + "..." * (len(preview) > _SHOWN_CHARACTERS)
        of = f" of {self.source}" if self.source else ""
        return [
            f"Sample {self.sample_idx}{of}: {self.task_id!r}, {len(self)} tokens",
            f"text: {cut!r}",
            f"activations: {describe_taps(self._context.taps)}",
        ]

    def _first(self) -> list[tuple[str, str, str, str]]:
        """Position, id, text and role of the first tokens; texts and roles where they are known."""
        ids = self.token_ids[:_SHOWN_TOKENS].tolist()
        positions = self.positions[:_SHOWN_TOKENS].tolist()
        try:
            tokens = [repr(self._context.decode([id_])) for id_ in ids]
        except UsageError:
            tokens = [""] * len(ids)
        try:
            roles = [ROLES[number] for number in self.column("role")[:_SHOWN_TOKENS].tolist()]
        except UsageError:
            roles = [""] * len(ids)
        return list(zip(map(str, positions), map(str, ids), tokens, roles, strict=True))

    @cached_property
    def _words(self) -> Words:
        return self._content.words()[self._number]

    @cached_property
    def _rows(self) -> tuple[int, int]:
        begin, end = self._content.offsets()[self._number : self._number + 2].tolist()
        return begin, end


def describe_taps(taps: Mapping[Tap, int]) -> str:
    """Which layers at which sites, and how wide: `residual of layers 6, 12 (896 wide)`."""
    layers: dict[tuple[Site, int], list[int]] = {}
    for tap, width in taps.items():
        layers.setdefault((tap.site, width), []).append(tap.layer)
    return "; ".join(
        f"{site} of layer{'s' * (len(at) > 1)} {_short(at)} ({width} wide)" for (site, width), at in layers.items()
    )


def _short(layers: Sequence[int]) -> str:
    """The layers, as a range where they are one."""
    ordered = sorted(layers)
    if len(ordered) > 2 and ordered == list(range(ordered[0], ordered[-1] + 1)):
        return f"{ordered[0]}-{ordered[-1]}"
    return ", ".join(map(str, ordered))
