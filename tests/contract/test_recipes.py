"""The programs of docs/export.md train the real trainers."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from dictionary_learning.trainers.top_k import AutoEncoderTopK
from sae_lens import TopKTrainingSAE
from sparsify import SparseCoder

from layertap.cli import main

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "export.md").read_text()
PROGRAMS = dict(re.findall(r"<!-- make contract runs this: ([\w ]+) -->\n```python\n(.*?)```", PAGE, re.DOTALL))
EXPORT = "layertap export activations for_saelens --to saelens --layers 2 --exclude first sink --context_size 64"

Report = Callable[[str], None]
Model = Callable[[torch.Tensor], torch.Tensor]


def run_program(name: str) -> dict[str, Any]:
    """Run the program, and return the names that it leaves."""
    names: dict[str, Any] = {}
    exec(compile(PROGRAMS[name], f"docs/export.md: {name}", "exec"), names)
    return names


@torch.no_grad()
def unexplained(model: Model, x: torch.Tensor) -> float:
    """The share of the variance that the model leaves unexplained."""
    return float((model(x) - x).square().sum() / (x - x.mean(0)).square().sum())


def require_learned(trained: Model, fresh: Model, x: torch.Tensor, what: str, report: Report) -> None:
    """Require that the loss went down, and that most of what the model saw is explained."""
    before, after = unexplained(fresh, x), unexplained(trained, x)
    report(f"{what}: {1 - after:.1%} of the variance explained, unexplained {before:.3f} before and {after:.3f} after")
    assert after < before / 2
    assert after < 0.3


def test_each_program_of_the_page_is_run() -> None:
    assert set(PROGRAMS) == {"saelens", "saelens folder", "dictionary_learning", "sparsify"}


def test_saelens_from_our_batches(place: Path, held_out: torch.Tensor, report: Report) -> None:
    sae = run_program("saelens")["sae"]
    require_learned(sae, TopKTrainingSAE(sae.cfg), held_out, "SAELens, from our batches", report)
    assert (place / "sae" / "sae_weights.safetensors").is_file()


def test_saelens_from_an_export(place: Path, held_out: torch.Tensor, report: Report) -> None:
    assert f"    {EXPORT}\n" in PAGE
    assert main(EXPORT.split()[1:]) == 0
    sae = run_program("saelens folder")["sae"]
    require_learned(sae, TopKTrainingSAE(sae.cfg), held_out, "SAELens, from an export", report)


def test_dictionary_learning_from_our_batches(place: Path, held_out: torch.Tensor, report: Report) -> None:
    run_program("dictionary_learning")
    trained = AutoEncoderTopK.from_pretrained(place / "dictionaries" / "trainer_0" / "ae.pt", k=16, device="cpu")
    fresh = AutoEncoderTopK(64, 512, 16)
    require_learned(trained, fresh, held_out, "dictionary_learning, from our batches", report)


def test_sparsify_from_our_batches(place: Path, held_out: torch.Tensor, report: Report) -> None:
    sae = run_program("sparsify")["sae"]
    fresh = SparseCoder(64, sae.cfg, device="cpu")
    fresh.b_dec.data = held_out.mean(0)
    trained = SparseCoder.load_from_disk(place / "sparsify_sae", device="cpu")
    require_learned(
        lambda x: trained(x).sae_out, lambda x: fresh(x).sae_out, held_out, "sparsify, from our batches", report
    )
