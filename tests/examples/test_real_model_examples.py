"""The examples that use a model with trained weights; `--quick` gives them the tiny one."""

import re
from pathlib import Path

import pytest
import real_model
import torch
from commands import ROOT, run
from safetensors.torch import load_file

import layertap


def printed(script: str, folder: Path, *flags: str) -> str:
    """Run the script in `folder`, where it must succeed, and return what it prints."""
    done = run([ROOT / "examples" / script, *flags], folder)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


def layers(output: str) -> dict[int, tuple[float, float]]:
    """For each layer of the table the norm of the first token, and that of the others."""
    rows = re.findall(r"^ +(\d+) +([\d,.]+) +([\d,.]+)$", output, re.MULTILINE)
    return {int(layer): tuple(float(norm.replace(",", "")) for norm in norms) for layer, *norms in rows}


@pytest.mark.whole
def test_first_extraction(tmp_path: Path) -> None:
    output = printed("first_extraction.py", tmp_path, "--quick")
    assert list(layers(output)) == [0, 1, 2, 3]
    assert "its mean square is 1.0" in output
    dataset = layertap.ActivationDataset(tmp_path / "activations")
    assert dataset.complete
    assert dataset.layers == (2,)
    grids = dataset[0].labels.grids()
    assert all(" ".join(map(str, row)) in output for row in grids["test", "input"])


@pytest.mark.whole
def test_chat_data(tmp_path: Path) -> None:
    output = printed("chat_data.py", tmp_path, "--quick")
    assert "the same numbers as in the whole: True" in output
    assert "its tokens are of: assistant" in output
    everything, answers = (layertap.ActivationDataset(tmp_path / name) for name in ("everything", "answers"))
    spoken = sum(int((sample.labels.role_names == "assistant").sum()) for sample in everything)
    assert answers.tokens == spoken
    assert f"{everything.tokens} tokens, {spoken} of them" in output
    shares = [int(share) for share in re.findall(r"(\d+)% of the (?:assistant|user)'s", output)]
    assert sum(shares) > 100  # both at chance would be 100


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_first_extraction_of_trained_weights(tmp_path: Path) -> None:
    try:
        real_model.make(tmp_path / "expected")
    except real_model.Unreachable as error:
        pytest.skip(f"needs a package of trained weights. {error}")
    output = printed("first_extraction.py", tmp_path)
    first, others = layers(output)[12]
    assert first > 100 * others
    made, expected = (load_file(tmp_path / name / "model.safetensors") for name in ("smollm2", "expected"))
    assert {name for name in expected if not name.endswith("bias")} == set(made)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in made.items())
