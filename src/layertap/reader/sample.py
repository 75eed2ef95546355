"""One sample of a dataset or of a running model, read lazily.

Only what you ask for is read, and activations of local safetensors are views of the mapped file. A
sample from a pickle keeps its whole shard in memory.

The text of tokens needs the tokenizer of the model. We look for it on first use, and only on this
machine, so that opening a dataset is fast and downloads nothing.
"""

import html
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any, Protocol

import numpy as np

from layertap.core.columns import NO_LABELS, ROLES, SINK
from layertap.core.taps import Site, Tap, name_layers
from layertap.errors import UsageError
from layertap.reader.labels import Labels
from layertap.shards.shard import Words

_SHOWN_CHARACTERS = 72
_SHOWN_TOKENS = 12


class Content(Protocol):
    """Something that holds samples, such as a `Shard`. Rows count the tokens of all its samples."""

    def offsets(self) -> np.ndarray:
        """Return where each sample begins, and the end of the last one; int64 [samples + 1]."""
        ...

    def sample_idx(self) -> np.ndarray:
        """Return the `sample_idx` of each sample; int64 [samples]."""
        ...

    def words(self) -> list[Words]:
        """Return the texts of each sample."""
        ...

    def column(self, name: str, begin: int, end: int) -> np.ndarray:
        """Return a column at these rows."""
        ...

    def positions(self, begin: int, end: int) -> np.ndarray:
        """Return the position of each row's token in its prompt."""
        ...

    def activations(self, tap: Tap, begin: int, end: int) -> np.ndarray:
        """[rows, width]"""
        ...

    def norms(self, tap: Tap, begin: int, end: int) -> np.ndarray:
        """Return the Euclidean norm of each row; float32."""
        ...

    def sinks(self, tap: Tap, begin: int, end: int) -> np.ndarray:
        """Return which rows are sinks; bool."""
        ...


class Context(Protocol):
    """What a sample needs from its source."""

    @property
    def taps(self) -> Mapping[Tap, int]:
        """The taps with activations, and their widths."""
        ...

    def tap(self, layer: int, site: Site | None) -> Tap:
        """Return the requested tap; raises UsageError if it is missing."""
        ...

    @property
    def decode(self) -> Callable[[Sequence[int]], str]:
        """A function from token ids to text; raises UsageError if the tokenizer is missing."""
        ...


class Sample:
    """A sequence of tokens that a model ran over, with its activations."""

    def __init__(self, content: Content, number: int, source: str, context: Context) -> None:
        self.source = source
        """Its output folder, below the dataset's. Samples of several streams may share a
        `sample_idx`."""
        self._content = content
        self._number = number
        self._context = context

    @cached_property
    def sample_idx(self) -> int:
        """Its number in its run, for `dataset.sample(sample_idx)`.

        Its index in the dataset, as in `dataset[i]`, may differ.
        """
        return int(self._content.sample_idx()[self._number])

    @property
    def task_id(self) -> str:
        """The task or document that the prompt was made from."""
        return self._words.task_id

    @property
    def text_preview(self) -> str:
        """The first 200 characters of the prompt."""
        return self._words.text_preview

    @property
    def origin(self) -> Mapping[str, Any]:
        """How the prompt was made from its task."""
        return self._words.origin

    @cached_property
    def token_ids(self) -> np.ndarray:
        """The ids of the prompt's tokens; int32 [tokens]."""
        return self.column("token_ids")

    @cached_property
    def text(self) -> str:
        """The text of all tokens, including special ones.

        Raises UsageError if this machine does not have the model's tokenizer.
        """
        return self._context.decode(self.token_ids.tolist())

    @cached_property
    def tokens(self) -> list[str]:
        """The text of each single token; a token that is part of a character gives `\ufffd`.

        Raises UsageError if this machine does not have the model's tokenizer.
        """
        decode, ids = self._context.decode, self.token_ids.tolist()
        words = {id_: decode([id_]) for id_ in set(ids)}
        return [words[id_] for id_ in ids]

    @property
    def positions(self) -> np.ndarray:
        """The position of each token in the prompt: 0, 1, 2, ..., with gaps for tokens that were
        not kept; int32 [tokens].
        """
        return self._content.positions(*self._rows)

    @cached_property
    def labels(self) -> Labels:
        """Who says each token, and which cell of which grid it is.

        Raises UsageError if the run was stored without labels.
        """
        return Labels(**{name: self.column(name) for name in NO_LABELS})

    def column(self, name: str) -> np.ndarray:
        """Return a column of the prompt's tokens by name; raises UsageError if the run lacks it."""
        return self._content.column(name, *self._rows)

    def activation(self, layer: int, site: Site | None = None) -> np.ndarray:
        """Return the activation of each token; [tokens, width] in the stored or requested dtype.

        You may leave out `site` if there is only one. Raises UsageError if that layer or site was
        not extracted.
        """
        return self._content.activations(self._context.tap(layer, site), *self._rows)

    def flags(self, layer: int, site: Site | None = None) -> np.ndarray:
        """Return the bits for first, special and sink tokens (docs/formats.md).

        The sinks differ between layers and sites.
        """
        sinks = self._content.sinks(self._context.tap(layer, site), *self._rows)
        return self.column("flags") | np.where(sinks, np.uint8(SINK), np.uint8(0))

    def norms(self, layer: int, site: Site | None = None) -> np.ndarray:
        """Return the Euclidean norm of each token's stored activation; float32 [tokens]."""
        return self._content.norms(self._context.tap(layer, site), *self._rows)

    def __len__(self) -> int:
        begin, end = self._rows
        return end - begin

    def __repr__(self) -> str:
        return "\n".join(self._lines())

    def _repr_html_(self) -> str:
        """Show the same facts in a notebook, and the first tokens with their roles."""
        facts = "<br>".join(html.escape(line) for line in self._lines())
        head = "".join(f"<th>{name}</th>" for name in ("position", "id", "token", "role"))
        rows = "".join(f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row)}</tr>" for row in self._first())
        left = len(self) - _SHOWN_TOKENS
        more = f"<p>and {left} more tokens</p>" if left > 0 else ""
        return f"<div><p>{facts}</p><table><tr>{head}</tr>{rows}</table>{more}</div>"

    def _lines(self) -> list[str]:
        """Describe the sample in three lines; reads only small facts."""
        preview = " ".join(self.text_preview.split())
        cut = preview[:_SHOWN_CHARACTERS] + "..." * (len(preview) > _SHOWN_CHARACTERS)
        of = f" of {self.source}" if self.source else ""
        return [
            f"Sample {self.sample_idx}{of}: {self.task_id!r}, {len(self)} tokens",
            f"text: {cut!r}",
            f"activations: {describe_taps(self._context.taps)}",
        ]

    def _first(self) -> list[tuple[str, str, str, str]]:
        """Return position, id, text and role of the first tokens; unknown texts and roles are
        empty.
        """
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
    """Describe layers, sites and widths: `residual of layers 6, 12 (896 wide)`."""
    layers: dict[tuple[Site, int], list[int]] = {}
    for tap, width in taps.items():
        layers.setdefault((tap.site, width), []).append(tap.layer)
    return "; ".join(f"{site} of {name_layers(at)} ({width} wide)" for (site, width), at in layers.items())
