"""Activations in memory: what a run would store, in its order, and without any file."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import huggingface
import numpy as np
import pytest
import shards
from runs import finished, manifest, out

from layertap.config.extract import ExtractConfig
from layertap.core.records import Document
from layertap.core.taps import Tap
from layertap.model.checkpoint import open_checkpoint
from layertap.pipeline.inputs import Prompts
from layertap.pipeline.packing import row_ladder
from layertap.pipeline.progress import Progress
from layertap.pipeline.session import OpenedModel, Session, open_model
from layertap.pipeline.setup import prepare
from layertap.pipeline.stream import stream_samples
from layertap.pipeline.windows import Position, WindowRules
from layertap.prompts import PromptMaker, load_template, load_tokenizer, parse_grid_encoder

FLOAT32 = np.dtype(np.float32)
RULES = WindowRules(
    window_samples=4,
    ladder=row_ladder(256, 256),
    batch_size=1,
    longest=256,
    overlong="error",
    on_bad_task="error",
    machine_id=0,
    total_machines=1,
)


@pytest.fixture
def session() -> Iterator[Session]:
    with closing(Session()) as session:
        yield session


def stream(session: Session, model: OpenedModel, prompts: Prompts, start: Position = Position()) -> Any:  # noqa: B008
    progress = Progress()
    return stream_samples(session, model, prompts.rules, prompts.windows(start), progress, lambda: None)


@pytest.fixture
def texts(tiny_model: Path) -> Prompts:
    """Eleven texts, in windows of four, made into prompts with no settings of a run."""
    template, encoder = load_template("output-from-examples-v1", None), parse_grid_encoder("MinimalGridEncoder()")
    maker = PromptMaker(load_tokenizer(tiny_model), template, encoder, 1, include_answer=False, seed=0)
    records = [Document(f"text {number}", "one two three " * (number + 1)) for number in range(11)]
    return Prompts(lambda: iter(records), maker, RULES)


@pytest.fixture
def model(tiny_model: Path) -> OpenedModel:
    taps = (Tap(1, "mlp"), Tap(2, "residual"))
    return open_model(open_checkpoint(str(tiny_model)), taps, FLOAT32, FLOAT32)


def test_texts_become_activations_without_the_settings_of_a_run(
    tiny_model: Path, session: Session, model: OpenedModel, texts: Prompts
) -> None:
    found = {sample.sample_idx: sample for _, sample in stream(session, model, texts)}
    assert sorted(found) == list(range(11))
    for sample in found.values():
        truth = huggingface.activations(tiny_model, sample.token_ids.tolist())
        assert set(sample.activations) == set(model.taps)
        for tap, activation in sample.activations.items():
            assert huggingface.relative_errors(activation, truth[tap]).max() <= 1e-4


def test_a_stream_gives_what_a_run_stores_in_its_order(config: ExtractConfig, session: Session) -> None:
    finished(config)
    setup = prepare(config)
    found = list(stream(session, setup.model, setup.prompts))
    stored = shards.samples(out(config), layer=3)
    assert [sample.sample_idx for _, sample in found] == list(stored)
    for _, sample in found:
        activation = stored[sample.sample_idx]["activation"]
        np.testing.assert_array_equal(sample.activations[Tap(3, "residual")].astype(np.float32), activation)
    last, _ = found[-1]
    assert last.window_digest == manifest(config)["progress"]["digest"]


def test_a_stream_may_be_closed_at_any_moment_and_goes_on_from_any_position(
    session: Session, model: OpenedModel, texts: Prompts
) -> None:
    """tests/support/leaks.py checks that nothing is left behind."""
    whole = [sample.sample_idx for _, sample in stream(session, model, texts)]
    stream(session, model, texts).close()
    for count in range(1, len(whole) + 1):
        begun = stream(session, model, texts)
        taken = [next(begun) for _ in range(count)]
        begun.close()
        position, _ = taken[-1]
        rest = list(stream(session, model, texts, position))
        assert [sample.sample_idx for _, sample in (*taken, *rest)] == whole
        assert [sample.activations.keys() for _, sample in rest] == [set(model.taps)] * len(rest)
