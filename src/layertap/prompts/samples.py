"""Turn records into samples: augment, write as a conversation, and tokenise.

A sample's tokens follow from the prompt settings, its task, test index and prediction index, and
from nothing else: not from its neighbours, nor from its place in the dataset. So a run can be
resumed, and many workers can share a dataset, with the same bytes in the end. You may call `make`
with any cut of the records: larger ones only give the tokenizer more at once.

A task with T test inputs gives T x `predictions_per_task` samples, one test input after another;
prediction i of every test input has the same augmentation. If a task has more than
`max_train_pairs` train pairs, each prediction shows the first of them in its own order. If an
answer is wanted but unknown, as in a competition's test set, the sample ends where the answer would
begin.

A document, a conversation and a list of tokens give one sample each. With `split`, they are cut
into contexts of a fixed number of tokens. Each context is a sample that records where it begins. It
repeats the last `overlap` tokens of the context before it, and the tokenizer's opening tokens (BOS)
if the whole text begins with them. The number of contexts is known only after tokenisation. So with
`split` each such record reserves `MOST_PARTS` sample numbers and uses the first ones.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Int32, Int64

from layertap.core.columns import NO_LABELS, Columns, token_columns
from layertap.core.records import Conversation, Document, GoodRecord, Task, TokenList
from layertap.core.sample import Sample
from layertap.errors import PromptError
from layertap.prompts.augment import Augmentation, draw_augmentation
from layertap.prompts.chat import Chat
from layertap.prompts.grids import GridEncoder
from layertap.prompts.labels import decide_roles, token_labels
from layertap.prompts.marked import Marked, marks_of, plain
from layertap.prompts.templates import PromptTemplate
from layertap.prompts.tokenizer import PromptTokenizer

MOST_PARTS = 1 << 20
"""How many sample numbers a record reserves if it may be split."""
_PREVIEW_CHARACTERS = 200
_PLAIN_ORIGIN: dict[str, Any] = {"test_index": None, "prediction": 0, "augmentation": None}


@dataclass(frozen=True)
class SplitRules:
    """How to cut long texts into contexts."""

    length: int
    """Tokens per context, including the opening tokens."""
    overlap: int = 0
    """How many tokens a context repeats from the end of the context before it."""


@dataclass(frozen=True, eq=False)
class _Draft:
    sample_idx: int
    """Its index among all samples of the dataset, from 0."""
    task_id: str
    text: str
    """Marked, unless it is a document."""
    token_ids: Int32[np.ndarray, " tokens"] | None = None
    """Set if the text was decoded from the tokens, not the other way round."""
    origin: dict[str, Any] = field(default_factory=lambda: dict(_PLAIN_ORIGIN))
    """Which prompt of its task it is, with all that is needed to redo or revert the
    augmentation."""


@dataclass(frozen=True, eq=False)
class PromptMaker:
    """Makes the samples of records. The same settings always give the same samples."""

    tokenizer: PromptTokenizer
    template: PromptTemplate
    encoder: GridEncoder
    predictions_per_task: int
    include_answer: bool
    seed: int
    add_generation_prompt: bool = False
    """Whether a conversation ends with the start of an assistant turn."""
    max_train_pairs: int | None = None
    split: SplitRules | None = None
    vocabulary: int | None = None
    """How many rows the model's embedding has; None means as many as the tokenizer has tokens."""

    def __post_init__(self) -> None:
        """Refuse to make no samples."""
        if self.predictions_per_task < 1:
            raise PromptError(f"predictions_per_task is {self.predictions_per_task}; it must be at least 1")

    def count(self, record: GoodRecord) -> int:
        """Return how many sample numbers `record` reserves."""
        return len(record.test) * self.predictions_per_task if isinstance(record, Task) else self.numbers_per_text

    @property
    def numbers_per_text(self) -> int:
        """How many sample numbers a document, conversation or list of tokens reserves."""
        return 1 if self.split is None else MOST_PARTS

    def expected(self, record: GoodRecord) -> int:
        """Estimate how many samples `record` gives, without tokenising it."""
        return self.count(record) if isinstance(record, Task) else 1

    def refusal(self, record: GoodRecord) -> str | None:
        """Return why `record` gives no sample, such as the chat template's own error; else None."""
        try:
            if isinstance(record, Conversation):
                text = self._chat_text(record)
                _check_unicode(record.task_id, text)
                self.tokenizer.chat.require_followed(self._chat(record))
                self._check_rows_of(record.task_id, text)
            elif isinstance(record, Document):
                self._check_rows_of(record.task_id, record.text)
            elif isinstance(record, TokenList):
                self._token_ids(record)
        except PromptError as error:
            return str(error)
        return None

    def make(self, records: Sequence[tuple[int, GoodRecord]]) -> list[Sample]:
        """Make the samples of `records`; each record comes with the `sample_idx` of its first
        sample.

        Raises PromptError, which names the task, for a text that is not valid Unicode, that has no
        tokens, or that has a token that the model's embedding lacks.
        """
        if (task := next((record for _, record in records if isinstance(record, Task)), None)) is not None:
            self.template.require_followed(task, self.encoder)
            chat = self.template.render(task, 0, self.encoder, self.include_answer)
            self.tokenizer.chat.require_followed(chat)
        drafts = [draft for first, record in records for draft in self._drafts(first, record)]
        for draft in drafts:
            _check_unicode(draft.task_id, draft.text)
        marked = iter(self.tokenizer.encode_marked([draft.text for draft in drafts if isinstance(draft.text, Marked)]))
        documents = iter(self.tokenizer.encode_batch([draft.text for draft in drafts if _is_document(draft)]))
        samples: list[Sample] = []
        for draft in drafts:
            labels: Columns | None = None
            if draft.token_ids is not None:
                token_ids = draft.token_ids
            elif _is_document(draft):
                token_ids = np.concatenate([np.array(self.tokenizer.opening_ids, np.int32), next(documents)])
            else:
                token_ids, offsets = next(marked)
                labels = _labels_of(draft.text, offsets)
            samples += self._samples(draft, token_ids, labels)
        return samples

    def show_task(self, task: Task, *, with_answer: bool) -> Columns:
        """Return the columns of the prompt for the task's first test input, without
        augmentation.
        """
        text = self.tokenizer.chat.render(self.template.render(task, 0, self.encoder, with_answer))
        ((token_ids, offsets),) = self.tokenizer.encode_marked([text])
        return token_columns(token_ids, self.tokenizer.special_ids, _labels_of(text, offsets))

    def identity(self) -> dict[str, str | int | bool | None]:
        """Return everything here that decides the tokens of a record, for the run fingerprint.

        Newer settings are included only if they are not the default, so that older runs resume.
        """
        return {
            "tokenizer": self.tokenizer.digest,
            "prompt_version": self.template.version,
            "prompt_template": self.template.digest,
            "grid_encoder": str(self.encoder),
            "predictions_per_task": self.predictions_per_task,
            "include_answer": self.include_answer,
            "random_seed": self.seed,
            **({"add_generation_prompt": True} if self.add_generation_prompt else {}),
            **({"max_train_pairs": self.max_train_pairs} if self.max_train_pairs is not None else {}),
            **({f"split_{name}": value for name, value in asdict(self.split).items()} if self.split else {}),
            **({"numbers_per_text": self.numbers_per_text} if self.split else {}),
        }

    def _drafts(self, first: int, record: GoodRecord) -> Iterator[_Draft]:
        match record:
            case Task():
                yield from self._task_drafts(first, record)
            case Document():
                yield _Draft(first, record.task_id, record.text)
            case Conversation():
                yield _Draft(first, record.task_id, self._chat_text(record))
            case TokenList():
                ids = self._token_ids(record)
                preview = self.tokenizer.decode(ids[:_PREVIEW_CHARACTERS])
                yield _Draft(first, record.task_id, preview, ids)

    def _task_drafts(self, first: int, task: Task) -> Iterator[_Draft]:
        places = itertools.count(first)
        shown = [self._shown(task, prediction) for prediction in range(self.predictions_per_task)]
        for test_index in range(len(task.test)):
            for prediction, (augmentation, augmented) in enumerate(shown):
                chat = self.template.render(augmented, test_index, self.encoder, self.include_answer)
                text = self.tokenizer.chat.render(chat)
                order = augmentation.train_order[: self.max_train_pairs]
                drawn = asdict(augmentation) | {"train_order": order}
                origin = {"test_index": test_index, "prediction": prediction, "augmentation": drawn}
                yield _Draft(next(places), task.task_id, text, origin=origin)

    def _shown(self, task: Task, prediction: int) -> tuple[Augmentation, Task]:
        augmentation = draw_augmentation(self.seed, task.task_id, prediction, len(task.train))
        if self.max_train_pairs is None:
            return augmentation, augmentation.apply(task)
        return augmentation, augmentation.apply_some(task, self.max_train_pairs)

    def _chat(self, conversation: Conversation) -> Chat:
        opening = "" if self.add_generation_prompt else None
        return Chat(conversation.messages, opening, conversation.tools)

    def _chat_text(self, conversation: Conversation) -> str:
        try:
            return self.tokenizer.chat.render(self._chat(conversation))
        except PromptError as error:
            raise PromptError(f"conversation {conversation.task_id!r}: {error}") from error

    def _token_ids(self, record: TokenList) -> Int32[np.ndarray, " tokens"]:
        most = self.vocabulary or self.tokenizer.vocab_size
        wrong = next((token for token in record.token_ids if not 0 <= token < most), None)
        if wrong is not None:
            raise PromptError(f"{record.task_id!r}: token {wrong} is not in the model's vocabulary of {most}")
        return np.array(record.token_ids, np.int32)

    @cached_property
    def _beyond(self) -> list[str]:
        """Added tokens without a row in the embedding, such as Gemma 3's image token."""
        return [] if self.vocabulary is None else self.tokenizer.added_beyond(self.vocabulary)

    def _check_rows_of(self, task_id: str, text: str) -> None:
        """Do `_check_rows` for a text. Few models and fewer texts need tokenising for this."""
        if any(token in text for token in self._beyond):
            _check_unicode(task_id, text)
            (token_ids,) = self.tokenizer.encode_batch([plain(text)])
            self._check_rows(task_id, token_ids)

    def _check_rows(self, task_id: str, token_ids: Int32[np.ndarray, " tokens"]) -> None:
        """Refuse a token without a row in the model's embedding."""
        wrong = token_ids[token_ids >= self.vocabulary] if self._beyond else token_ids[:0]
        if wrong.size:
            raise PromptError(
                f"{task_id!r}: token {wrong[0]} ({self.tokenizer.decode(wrong[:1])!r}) is not in the model's"
                f" vocabulary of {self.vocabulary}; leave it out of the dataset"
            )

    def _samples(self, draft: _Draft, token_ids: Int32[np.ndarray, " tokens"], labels: Columns | None) -> list[Sample]:
        """Return the sample of a draft, or the samples of its contexts."""
        if token_ids.size == 0:
            raise PromptError(
                f"task {draft.task_id!r}: its text {draft.text!r} has no tokens; leave it out of the dataset"
            )
        self._check_rows(draft.task_id, token_ids)
        columns = token_columns(token_ids, self.tokenizer.special_ids, labels)
        whole = Sample(draft.sample_idx, draft.task_id, plain(draft.text[:_PREVIEW_CHARACTERS]), columns, draft.origin)
        is_puzzle = draft.origin["augmentation"] is not None
        return [whole] if self.split is None or is_puzzle else list(self._contexts(whole, self.split))

    def _contexts(self, whole: Sample, rules: SplitRules) -> Iterator[Sample]:
        opening = len(self.tokenizer.opening_ids)
        if tuple(whole.token_ids[:opening].tolist()) != self.tokenizer.opening_ids:
            opening = 0
        room = rules.length - opening
        step = room - rules.overlap
        if step < 1:
            raise PromptError(f"contexts of {rules.length} tokens have no room for {rules.overlap} repeated ones")
        body = whole.tokens - opening
        parts = max(1, -(-(body - rules.overlap) // step))
        if parts > MOST_PARTS:
            raise PromptError(
                f"{whole.task_id!r}: has {parts} contexts of {rules.length} tokens, more than {MOST_PARTS}"
            )
        for part in range(parts):
            begin = opening + part * step
            taken = np.r_[:opening, begin : min(begin + room, whole.tokens)]
            ids = whole.token_ids[taken]
            labels = {name: whole.columns[name][taken] for name in NO_LABELS}
            preview = whole.text_preview if part == 0 else self.tokenizer.decode(ids[:_PREVIEW_CHARACTERS])
            yield replace(
                whole,
                sample_idx=whole.sample_idx + part,
                text_preview=preview[:_PREVIEW_CHARACTERS],
                columns=token_columns(ids, self.tokenizer.special_ids, labels),
                origin={**whole.origin, "part": part, "parts": parts, "start": begin if part else 0},
            )


def _labels_of(text: str, offsets: Int64[np.ndarray, "tokens 2"]) -> Columns:
    return token_labels(decide_roles(marks_of(text)), offsets)


def _is_document(draft: _Draft) -> bool:
    return draft.token_ids is None and not isinstance(draft.text, Marked)


def _check_unicode(task_id: str, text: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise PromptError(f"task {task_id!r}: its text is not valid Unicode: {error}") from error
