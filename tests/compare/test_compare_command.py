"""`layertap compare` as a user calls it."""

import json
from pathlib import Path

import dumps
import numpy as np
import pytest

from layertap.cli import main


@pytest.fixture
def dump(tmp_path: Path, prompts: list[np.ndarray], streams: list[np.ndarray]) -> Path:
    arrays = {"residual.0": streams[0], "residual.2": streams[1]}
    return dumps.save(tmp_path / "dump.safetensors", token_ids=prompts[0], **arrays)


def test_the_exit_status_tells_right_from_wrong(
    dump: Path, tiny_model: Path, prompts, streams, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", str(dump), "--model_path", str(tiny_model)]) == 1
    sound = dumps.save(tmp_path / "sound.safetensors", token_ids=prompts[0], **{"residual.2": streams[2]})
    assert main(["compare", str(sound), "--model_path", str(tiny_model)]) == 0
    assert main(["compare", str(tmp_path / "absent"), "--model_path", str(tiny_model)]) == 2
    assert "absent: no such file or folder" in capsys.readouterr().err
    assert main(["compare", str(sound), "--model_path", str(tiny_model), "--max_tokens", "0"]) == 2


def test_what_a_person_reads(dump: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["compare", str(dump), "--model_path", str(tiny_model)])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{dump}: a safetensors file; 40 tokens of 1 sample are compared"
    rows = {line.split()[0]: line for line in lines if line.startswith("residual.")}
    assert "residual.0: right, equal within float32 rounding" in lines
    (told,) = (line for line in lines if line.startswith("residual.2: "))
    assert "this is `residual` of layer 1 (`hidden_states[2]` of transformers" in told
    assert told.endswith(", not `residual` of layer 2; equal within float32 rounding")
    assert len(rows) == 4  # a verdict, and a line of worst tokens


def test_what_a_program_reads(dump: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["compare", str(dump), "--model_path", str(tiny_model), "--json"])
    told = json.loads(capsys.readouterr().out)
    assert not told["sound"]
    first, second = told["arrays"]
    assert first["nearest"] == {"layer": 0, "site": "residual", "final_norm": False}
    assert not first["fault"]
    assert second["nearest"]["layer"] == 1
    assert second["claimed"] == "`residual` of layer 2"
    assert second["rounding"] == "float32"
    assert len(second["errors"][0]) == len(told["samples"][0]["token_ids"]) == 40
    assert max(second["errors"][0]) == pytest.approx(second["worst_error"], rel=1e-2)
