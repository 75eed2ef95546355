"""The training loop in docs/reading.md trains, and continues where it was stopped."""

import re
from pathlib import Path

import commands
import pytest

from layertap.config.extract import ExtractConfig
from layertap.pipeline.run import extract


@pytest.mark.whole
def test_the_autoencoder_of_the_page_learns(tmp_path: Path, tiny_model: Path, demo_tasks: Path) -> None:
    config = ExtractConfig(
        dataset_path=str(demo_tasks),
        model_path=str(tiny_model),
        layers_to_extract=(2,),
        predictions_per_task=2,
        format="safetensors",
        output_dir=str(tmp_path / "activations"),
        checkpointing=False,
    )
    extract(config)
    page = (commands.ROOT / "docs/reading.md").read_text()
    (program,) = re.findall(r"<!-- a test runs this -->\n```python\n(.*?)```", page, re.DOTALL)
    program = program.replace("512, 16, 512, 200", "256, 16, 256, 100")
    assert "100" in program
    first = commands.run(["-c", program.replace("256, 100", "256, 50")], tmp_path)
    assert first.returncode == 0, first.stderr
    then = commands.run(["-c", program], tmp_path)
    assert then.returncode == 0, then.stderr
    explained = [float(value) for value in re.findall(r": ([\d.]+) of the variance", first.stdout + then.stdout)]
    assert len(explained) == 2
    assert explained[1] > explained[0] > 0
