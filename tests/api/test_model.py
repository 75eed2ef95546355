"""`layertap.Model`: the command's numbers, in the order of the inputs, from a model that is loaded
once.
"""

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from runs import finished, out, small_run
from safetensors import safe_open
from safetensors.numpy import save_file

import layertap
from layertap.demo.checkpoint import write_checkpoint
from layertap.errors import BadTaskError, InputError, ModelError, OverlongError, UsageError
from layertap.model import weights

SETTINGS: dict[str, Any] = {
    "predictions_per_task": 2,
    "prompt_version": "output-from-examples-v1",
    "row_length": 1024,
    "batch_size": 2,
    "max_seq_length": 4096,
    "compute_dtype": "float32",
}


@pytest.fixture
def model(tiny_model: Path) -> Iterator[layertap.Model]:
    with closing(layertap.Model(tiny_model, **SETTINGS)) as model:
        yield model


def texts(count: int) -> list[str]:
    return [f"text {number}: " + "one two three " * (1 + 7 * number % 11) for number in range(count)]


@pytest.mark.whole
def test_the_numbers_are_those_of_the_command(
    model: layertap.Model, few_tasks: Path, tiny_model: Path, tmp_path: Path
) -> None:
    config = small_run(
        few_tasks, tiny_model, tmp_path, compute_dtype="float32", activation_type=("residual", "mlp_in"), certify=0
    )
    finished(config)
    stored = layertap.ActivationDataset(out(config))
    tasks = [json.loads(line) for line in few_tasks.read_text().splitlines()]
    read = list(model.read(tasks, layers=[1, 3], sites=["residual", "mlp_in"]))
    assert [sample.sample_idx for sample in read] == list(range(len(stored)))
    for sample in read:
        same = stored.sample(sample.sample_idx)
        assert (sample.task_id, sample.origin["prediction"]) == (same.task_id, same.origin["prediction"])
        np.testing.assert_array_equal(sample.token_ids, same.token_ids)
        assert sample.tokens == same.tokens
        assert sample.text == same.text
        np.testing.assert_array_equal(sample.labels.row, same.labels.row)
        for tap in stored.taps:
            np.testing.assert_allclose(sample.activation(*tap), same.activation(*tap), rtol=1e-5, atol=1e-5)
            np.testing.assert_allclose(sample.norms(*tap), same.norms(*tap), rtol=1e-5)
            np.testing.assert_array_equal(sample.flags(*tap), same.flags(*tap))


def test_samples_come_in_the_order_of_the_inputs(model: layertap.Model) -> None:
    given = texts(150)
    read = list(model.read(given, layers=0))
    assert [sample.text for sample in read] == given
    assert [sample.sample_idx for sample in read] == list(range(150))
    assert all("".join(sample.tokens) == text for sample, text in zip(read, given, strict=True))


def test_inputs_are_read_as_samples_come(model: layertap.Model) -> None:
    taken: list[int] = []

    def endless() -> Iterator[str]:
        while True:
            taken.append(1)
            yield f"text {len(taken)}"

    reading = model.read(endless(), layers=0)
    assert next(reading).text == "text 1"
    assert len(taken) <= 3 * 64
    reading.close()  # type: ignore[attr-defined]


@pytest.mark.whole
def test_weights_are_loaded_once_and_serve_lower_layers(model: layertap.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[int] = []
    load = weights.load

    def counted(checkpoint: Any, num_layers: int, *rest: Any) -> Any:
        loaded.append(num_layers)
        return load(checkpoint, num_layers, *rest)

    monkeypatch.setattr(weights, "load", counted)
    deep = next(iter(model.read("some text", layers=[1, 2])))
    low = next(iter(model.read("some text", layers=1)))
    assert loaded == [3]
    np.testing.assert_allclose(low.activation(1), deep.activation(1), rtol=1e-5, atol=1e-6)
    top = next(iter(model.read("some text", layers="all", sites="attn")))
    assert top.activation(3).shape == (len(top), model.hidden_size)
    assert loaded == [3, 4]


def test_a_reading_that_is_left_leaves_the_model_usable(model: layertap.Model) -> None:
    expected = [sample.activation(2) for sample in model.read(texts(5), layers=2)]
    reading = model.read(texts(100), layers=2)
    next(reading)
    with pytest.raises(KeyboardInterrupt):
        reading.throw(KeyboardInterrupt)  # type: ignore[attr-defined]  # as Ctrl-C does within it
    for sample, same in zip(model.read(texts(5), layers=2), expected, strict=True):
        np.testing.assert_array_equal(sample.activation(2), same)


def test_two_readings_may_take_turns(model: layertap.Model) -> None:
    one, other = model.read(texts(70), layers=1), model.read(texts(70), layers=2)
    for left, right in zip(one, other, strict=True):
        assert left.text == right.text
        assert left.activation(1).shape == right.activation(2).shape


_INTERRUPTED = """
import itertools, sys
import layertap
model = layertap.Model(sys.argv[1], row_length=256, max_seq_length=256)
try:
    for number, sample in enumerate(model.read((f"text {n}" for n in itertools.count()), layers=[1])):
        if number == 100:
            print("reading", flush=True)
except KeyboardInterrupt:
    print("interrupted")
print(next(iter(model.read("again", layers=[1]))).text)
"""


@pytest.mark.whole
def test_ctrl_c_leaves_the_model_usable(tiny_model: Path) -> None:
    command = [sys.executable, "-c", _INTERRUPTED, str(tiny_model)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "reading\n"
        process.send_signal(signal.SIGINT)
        said, errors = process.communicate(timeout=120)
    assert (said, process.returncode) == ("interrupted\nagain\n", 0), errors


def test_bfloat16_is_widened_and_kept_as_you_like(tiny_model: Path) -> None:
    with closing(layertap.Model(tiny_model)) as model:
        wide = next(iter(model.read("some text", layers=1))).activation(1)
        own = next(iter(model.read("some text", layers=1, dtype="bfloat16"))).activation(1)
    assert (wide.dtype, own.dtype.name) == (np.float32, "bfloat16")
    np.testing.assert_array_equal(wide, own.astype(np.float32))


def test_float16_makes_no_infinity(tiny_model: Path, tmp_path: Path) -> None:
    large = tmp_path / "large"
    write_checkpoint(large, "tiny")
    with safe_open(large / "model.safetensors", "np") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dictionary
    tensors["model.embed_tokens.weight"] = tensors["model.embed_tokens.weight"] * np.float32(1e6)
    save_file(tensors, large / "model.safetensors")
    with closing(layertap.Model(large, compute_dtype="float32")) as model:
        sample = next(iter(model.read("some text", layers=1, dtype="float16")))
        with pytest.raises(UsageError, match="beyond what float16 holds"):
            sample.activation(1)


def test_a_conversation_ends_where_the_assistant_would_go_on(model: layertap.Model) -> None:
    asked = [{"role": "user", "content": "hi"}]
    closed, opened = (
        next(iter(model.read(asked, layers=0, add_generation_prompt=more))).text for more in (False, True)
    )
    assert opened == closed + "<|im_start|>assistant\n"


def test_a_model_keeps_its_own_settings_of_prompts(tiny_model: Path) -> None:
    asked = [{"role": "user", "content": "hi"}]
    with closing(layertap.Model(tiny_model, **SETTINGS, add_generation_prompt=True)) as model:
        given, with_it, without = (
            next(iter(model.read(asked, layers=0, **more))).text
            for more in ({}, {"add_generation_prompt": True}, {"add_generation_prompt": False})
        )
    assert given == with_it != without


def test_what_would_do_nothing_is_refused(tiny_model: Path) -> None:
    with pytest.raises(UsageError, match="certify: works only with the command"):
        layertap.Model(tiny_model, certify=3)


@pytest.mark.parametrize(
    ("inputs", "asked", "error", "message"),
    [
        ("a", {"layers": 4}, ModelError, "layers 0 to 3"),
        ("a", {"layers": []}, UsageError, "no layer is given"),
        ("a", {"sites": "resid"}, UsageError, "'resid'"),
        ("a", {"dtype": "int8"}, UsageError, "dtype='int8'"),
        (["a", ""], {}, BadTaskError, "input 1: 'text' is empty"),
        ([[5, 768]], {}, BadTaskError, "input 0: .*token 768"),
        ("word " * 5000, {}, OverlongError, "tokens, but"),
    ],
    ids=str,
)
def test_what_is_wrong_is_named(
    model: layertap.Model, inputs: Any, asked: dict[str, Any], error: type[InputError], message: str
) -> None:
    with pytest.raises(error, match=message):
        list(model.read(inputs, **asked))


def test_arguments_are_refused_before_anything_is_read(model: layertap.Model) -> None:
    with pytest.raises(ModelError):
        model.read("a", layers=4)


def test_a_site_that_was_not_read_is_named(model: layertap.Model) -> None:
    sample = next(iter(model.read("some text", layers=[1, 2], sites=["mlp", "neurons"])))
    with pytest.raises(UsageError, match="holds layers 1, 2 at mlp, neurons, not layer 3 at mlp"):
        sample.activation(3, "mlp")
    with pytest.raises(UsageError, match="give one of mlp, neurons"):
        sample.activation(1)


def test_what_shows_itself_is_no_markup(model: layertap.Model) -> None:
    sample = next(iter(model.read("<script>alert(1)</script>", layers=1)))
    assert "<script" not in sample._repr_html_()
    assert "&lt;script" in sample._repr_html_()
    assert repr(sample).splitlines()[0].startswith("Sample 0: 'input 0', ")


def test_importing_costs_no_framework() -> None:
    program = (
        "import sys, layertap; print(dir(layertap));"
        "print(sorted({'jax', 'numpy', 'torch', 'tokenizers', 'pyarrow'} & set(sys.modules)))"
    )
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    names, heavy = said.splitlines()
    assert set(layertap.__all__) <= set(json.loads(names.replace("'", '"')))
    assert heavy == "[]"
