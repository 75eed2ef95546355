"""The final norm, the embeddings and the layers of other families than Qwen's."""

import shutil
from pathlib import Path

import dumps
import numpy as np
import pytest
import torch
from families import write_family
from verdicts import Look


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2", "gemma3", "phi3"])
def test_hidden_states(family: str, look: Look, tiny_model: Path, prompts: list[np.ndarray], tmp_path: Path) -> None:
    """Gemma scales its embeddings, and stores norms less one."""
    model = tmp_path / "model"
    write_family(model, family, vocab_size=768)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny_model / name, model)
    states = torch.stack([state[0] for state in dumps.hidden_states(model, prompts[0][None])], 1)
    found = look(model=model, hidden_states=states)
    told = [(one.verdict.fault, one.verdict.words) for one in found.findings]
    assert [fault for fault, _ in told] == [False] * 4 + [True], told
    assert "the final norm was applied to `residual` of layer 3; equal within float32 rounding" in told[4][1]
