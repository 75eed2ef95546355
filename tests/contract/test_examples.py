"""The examples that train with the real trainers, each in its own process and an empty folder;
`--quick` makes them small.
"""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from dictionary_learning.trainers.top_k import AutoEncoderTopK
from sae_lens import SAE

import layertap

ROOT = Path(__file__).resolve().parents[2]
Report = Callable[[str], None]


def printed(script: str, folder: Path) -> str:
    """Run the script, which must succeed, and return what it prints."""
    done = subprocess.run(
        [sys.executable, ROOT / "examples" / script, "--quick"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


def explained(output: str, pattern: str) -> list[float]:
    """The shares of the variance that it printed during training, in their order."""
    return [float(share) for share in re.findall(pattern, output)]


def require_as_printed(features: torch.Tensor, folder: Path, output: str) -> None:
    """A feature is where the script says. The script names a feature, its value, and the token in
    its context.
    """
    number, value, before, token = re.search(r"feature (\d+), at .*\n +([\d.]+)  (.*)«(.*?)»", output).groups()
    assert float(value) == pytest.approx(float(features[:, int(number)].max()), abs=0.01)
    sample_texts = [sample.text.replace("\n", "⏎").replace("\t", " ") for sample in dataset(folder)]
    assert any(before + token in text for text in sample_texts)


def dataset(folder: Path) -> layertap.ActivationDataset:
    return layertap.ActivationDataset(folder / "texts", tokenizer=folder / "tiny")


def activations(folder: Path) -> torch.Tensor:
    """Return the activations that the script read its features from; float32 [tokens, width]."""
    found = dataset(folder)
    batches = found.batches(found.tokens, exclude={"first", "sink"}, as_="torch", dtype="float32", shuffle=False)
    (batch,) = batches
    return batch.activations[:, 0]


@torch.no_grad()
def test_train_saelens(tmp_path: Path, report: Report) -> None:
    output = printed("train_saelens.py", tmp_path)
    shares = explained(output, r"step \d+: .* ([\d.]+)% explained")
    assert shares[-1] > shares[0] + 20
    sae = SAE.load_from_disk(str(tmp_path / "sae"), device="cpu")
    x = activations(tmp_path)
    lost = (sae(x) - x).square().sum() / (x - x.mean(0)).square().sum()
    report(f"examples/train_saelens.py --quick: {1 - float(lost):.1%} of the variance explained")
    assert f"of the texts: {1 - float(lost):.1%} explained" in output
    require_as_printed(sae.encode(x), tmp_path, output)


@torch.no_grad()
def test_train_dictionary_learning(tmp_path: Path, report: Report) -> None:
    output = printed("train_dictionary_learning.py", tmp_path)
    shares = explained(output, r"Step \d+: .*frac_variance_explained = (-?[\d.]+)")
    assert shares[-1] > shares[0] + 0.2
    trained = AutoEncoderTopK.from_pretrained(tmp_path / "dictionaries" / "trainer_0" / "ae.pt", k=16, device="cpu")
    x = activations(tmp_path)
    lost = (trained(x) - x).square().sum() / (x - x.mean(0)).square().sum()
    report(f"examples/train_dictionary_learning.py --quick: {1 - float(lost):.1%} of the variance explained")
    assert f"of the texts: {1 - float(lost):.1%} explained" in output
