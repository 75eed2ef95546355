"""From records to samples: augmented, written as a conversation, and tokenised.

A sample's tokens follow from the prompt settings, its task, test index and prediction index, and
from nothing else: not from its neighbours, nor from its place in the dataset. So a run can be
resumed, and many workers can share a dataset, with the same bytes in the end. You
may call `make` with any cut of the records: larger ones only give the tokenizer more at once.

A task with T test inputs gives T x `predictions_per_task` samples, test input by test input;
prediction i of every test input has the same augmentation. A document gives one sample of its text
unchanged. Where an answer is asked for but not known, as in a competition's test set, the sample
is made without it and ends where the answer would begin.
"""

import itertools
from collections.abc import Iterator, Sequence, Set
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Int32

from layertap.core.columns import token_columns
from layertap.core.records import Document, GoodRecord, Task
from layertap.core.sample import Sample
from layertap.errors import PromptError
from layertap.prompts.augment import Augmentation, draw_augmentation
from layertap.prompts.grids import GridEncoder
from layertap.prompts.templates import PromptTemplate
from layertap.prompts.tokenizer import PromptTokenizer

_PREVIEW_CHARACTERS = 200


@dataclass(frozen=True, eq=False)
class _Draft:
    sample_idx: int
    """Its place among all samples of the dataset, from 0."""
    task_id: str
    test_index: int | None
    """Which test input of the task; None for a document."""
    prediction: int
    """Which of the augmented versions; 0 for a document."""
    augmentation: Augmentation | None
    """None for a document."""
    text: str

    @property
    def origin(self) -> dict[str, Any]:
        """Which prompt of its task it is; enough to make and revert the augmentation again."""
        augmentation = None if self.augmentation is None else asdict(self.augmentation)
        return {"test_index": self.test_index, "prediction": self.prediction, "augmentation": augmentation}


@dataclass(frozen=True, eq=False)
class PromptMaker:
    """Makes the samples of records, always the same ones for the same settings."""

    tokenizer: PromptTokenizer
    template: PromptTemplate
    encoder: GridEncoder
    predictions_per_task: int
    include_answer: bool
    seed: int

    def __post_init__(self) -> None:
        """Refuse to make nothing."""
        if self.predictions_per_task < 1:
            raise PromptError(f"predictions_per_task is {self.predictions_per_task}; it must be at least 1")

    def count(self, record: GoodRecord) -> int:
        """How many samples `record` gives."""
        return len(record.test) * self.predictions_per_task if isinstance(record, Task) else 1

    def make(self, records: Sequence[tuple[int, GoodRecord]]) -> list[Sample]:
        """The samples of all `records`, each given with the `sample_idx` of its first sample.

        Raises PromptError naming the task whose text is not valid Unicode or has no tokens.
        """
        drafts = [draft for first, record in records for draft in self._drafts(first, record)]
        for draft in drafts:
            _check_unicode(draft)
        token_ids = self.tokenizer.encode_batch([draft.text for draft in drafts])
        special = self.tokenizer.special_ids
        return [_sample(draft, ids, special) for draft, ids in zip(drafts, token_ids, strict=True)]

    def identity(self) -> dict[str, str | int | bool]:
        """Everything here that decides the tokens of a given record, for the run fingerprint."""
        return {
            "tokenizer": self.tokenizer.digest,
            "prompt_version": self.template.version,
            "prompt_template": self.template.digest,
            "grid_encoder": str(self.encoder),
            "predictions_per_task": self.predictions_per_task,
            "include_answer": self.include_answer,
            "random_seed": self.seed,
        }

    def _drafts(self, first: int, record: GoodRecord) -> Iterator[_Draft]:
        if not isinstance(record, Task | Document):
            raise PromptError(f"{record.task_id!r}: a {type(record).__name__} makes no prompt yet")
        if isinstance(record, Document):
            yield _Draft(first, record.task_id, None, 0, None, record.text)
            return
        places = itertools.count(first)
        augmented = [self._augmented(record, prediction) for prediction in range(self.predictions_per_task)]
        for test_index in range(len(record.test)):
            for prediction, (augmentation, task) in enumerate(augmented):
                text = self._text(task, test_index)
                yield _Draft(next(places), task.task_id, test_index, prediction, augmentation, text)

    def _augmented(self, task: Task, prediction: int) -> tuple[Augmentation, Task]:
        augmentation = draw_augmentation(self.seed, task.task_id, prediction, len(task.train))
        return augmentation, augmentation.apply(task)

    def _text(self, task: Task, test_index: int) -> str:
        conversation = self.template.render(task, test_index, self.encoder, self.include_answer)
        return self.tokenizer.chat.render(conversation)


def _check_unicode(draft: _Draft) -> None:
    try:
        draft.text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise PromptError(f"task {draft.task_id!r}: its text is not valid Unicode: {error}") from error


def _sample(draft: _Draft, token_ids: Int32[np.ndarray, " tokens"], special: Set[int]) -> Sample:
    if token_ids.size == 0:
        raise PromptError(f"task {draft.task_id!r}: its text {draft.text!r} has no tokens; leave it out of the dataset")
    return Sample(
        sample_idx=draft.sample_idx,
        task_id=draft.task_id,
        text_preview=draft.text[:_PREVIEW_CHARACTERS],
        columns=token_columns(token_ids, special),
        origin=draft.origin,
    )
