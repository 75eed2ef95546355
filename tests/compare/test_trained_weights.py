"""The main faults on trained weights. There neighbouring layers are alike, one token is a hundred
times as long as the others, and bfloat16 leaves errors of percents.
"""

from collections.abc import Callable
from pathlib import Path

import dumps
import numpy as np
import pytest
import torch
from verdicts import Look, verdict

from layertap.compare.command import Comparison, compare
from layertap.config.compare import CompareConfig
from layertap.prompts import load_tokenizer

pytestmark = pytest.mark.slow

_LAYERS = (1, 11, 28)
_TEXTS = (
    "The capital of France is Paris, and the river that flows through it is the Seine. In 1889 the Eiffel Tower was"
    " built for the World's Fair.\n\ndef fibonacci(n):\n    return n if n < 2 else fibonacci(n - 1) + fibonacci(n - 2)",
    "Water boils at 100 degrees Celsius at sea level; the boiling point falls as the pressure does, and rises with it.",
)
Streams = dict[int, torch.Tensor]


@pytest.fixture(scope="module")
def texts(trained_model: Path) -> list[np.ndarray]:
    return load_tokenizer(trained_model).encode_batch(list(_TEXTS))


# In bfloat16 each takes a minute of a CPU.
@pytest.fixture(scope="module", params=["float32", pytest.param("bfloat16", marks=pytest.mark.proof)])
def run(request: pytest.FixtureRequest, trained_model: Path) -> Callable[..., Streams]:
    """A function that gives the output of some layers for a row of tokens, computed by transformers
    in a dtype.
    """
    model = dumps.open_model(trained_model, getattr(torch, request.param))

    def outputs(ids: np.ndarray, **given: object) -> Streams:
        found = dumps.layer_outputs(model, ids[None], **given)
        return {layer: found[layer][0].float() for layer in _LAYERS}

    return outputs


@pytest.fixture
def held(trained_model: Path, texts: list[np.ndarray], tmp_path: Path) -> Look:
    def look(streams: Streams, ids: np.ndarray | None = None, said: int = 0, **beside: object) -> Comparison:
        arrays = {f"residual.{layer + said}": stream for layer, stream in streams.items()}
        given = {"token_ids": texts[0] if ids is None else ids, **arrays, **beside}
        path = dumps.save(tmp_path / "dump.safetensors", **given)
        return compare(CompareConfig(str(path), model_path=str(trained_model)))

    return look


def expect(found: Comparison, told: str, said: int = 0) -> None:
    """Require this fault in each array, and that each array is recognised as its own layer."""
    for layer in _LAYERS:
        wrong, words = verdict(found, f"residual.{layer + said}")
        assert wrong, words
        assert told in words
        assert f"this is `residual` of layer {layer}" in words


def test_what_is_right_is_right(run: Callable[..., Streams], held: Look, texts: list[np.ndarray]) -> None:
    found = held(run(texts[0]))
    assert found.sound, [one.verdict.words for one in found.findings]
    assert [one.diagnosis.best.candidate.tap for one in found.findings] == [(layer, "residual") for layer in _LAYERS]


def test_a_layer_off_by_one(run: Callable[..., Streams], held: Look, texts: list[np.ndarray]) -> None:
    expect(held(run(texts[0]), said=1), "not `residual` of layer", said=1)


_CHANGES = {
    "shifted by 1 token: row t is what token t + 1 gives": lambda x: x.roll(-1, 0),
    "a constant vector was subtracted from all tokens": lambda x: x - x.mean(0),
    "each token brought to the length 1": lambda x: x / x.norm(dim=1, keepdim=True),
    "multiplied by 0.037": lambda x: 0.037 * x,
    "as if [9, 64] had been written as [64, 9]": lambda x: x.reshape(-1, 9, 64).transpose(1, 2).reshape(-1, 576),
}


@pytest.mark.parametrize("told", _CHANGES)
def test_what_was_done_to_it(run: Callable[..., Streams], held: Look, texts: list[np.ndarray], told: str) -> None:
    expect(held({layer: _CHANGES[told](stream) for layer, stream in run(texts[0]).items()}), told)


def test_a_small_change_is_seen_in_float32(trained_model: Path, held: Look, texts: list[np.ndarray]) -> None:
    """The mean over channels is a hundredth of the stream here; bfloat16's error is as large."""
    outputs = dumps.layer_outputs(trained_model, texts[0][None])
    streams = {layer: outputs[layer][0] for layer in _LAYERS}
    centred = {layer: stream - stream.mean(1, keepdim=True) for layer, stream in streams.items()}
    expect(held(centred), "the mean over its channels was subtracted")


def test_a_first_token_that_the_ids_lack(run: Callable[..., Streams], held: Look, texts: list[np.ndarray]) -> None:
    streams = run(np.append(np.int32(1), texts[0]))
    told = "the model had '<|im_start|>' before the tokens, which the token ids lack"
    expect(held({layer: stream[1:] for layer, stream in streams.items()}), told)


def test_samples_that_see_each_other(run: Callable[..., Streams], held: Look, texts: list[np.ndarray]) -> None:
    row = np.concatenate(texts)
    found = held(run(row), row, lengths=np.array([len(text) for text in texts]))
    expect(found, "its samples attended to those before them")


def test_wrong_positions_are_not_taken_for_rounding(
    run: Callable[..., Streams], held: Look, texts: list[np.ndarray]
) -> None:
    found = held(run(texts[0], position_ids=2 * torch.arange(len(texts[0]))[None]))
    assert all(one.verdict.fault and one.diagnosis.explanation is None for one in found.findings)
