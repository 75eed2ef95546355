"""Python in the pages runs: each block here, or in the test that is named for its page.

A page's blocks run one after the other, as a reader would type them, with the Hub on loopback and a
small model under the name that they print.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import commands
import pytest
from fakes.hub import FakeHub
from pages import PAGES, blocks

from layertap.demo.checkpoint import write_checkpoint
from layertap.demo.tasks import make_tasks, write_tasks

_HERE = ("python.md", "reading.md", "labels.md", "compare.md", "recipes.md")
_ELSEWHERE = {
    "export.md": "contract/test_recipes.py",
    "formats.md": "shards/test_formats_page.py",
    "reading.md": "reader/test_reading_page.py",
    "view.md": "docs/test_export_and_view.py",
}
_PYTHON = re.compile(r"^(import|from \S+ import|for .*:$|with .*:$|[\w, ]+ = )", re.MULTILINE)
_BY_ANOTHER_TEST = "<!-- a test runs this -->"
_SET_UP = """
import types
import layertap
import numpy as np
sae = types.SimpleNamespace(W_enc=np.ones((64, 8)), b_enc=np.ones(8), W_dec=np.ones((8, 64)), b_dec=np.ones(64))
settings = dict(dataset_path="tasks.jsonl", predictions_per_task=1, checkpointing=False)
dataset = layertap.extract(**settings, layers_to_extract=[6, 12, 18], output_dir="residual of {page}")
of_mlp = layertap.extract(
    **settings, layers_to_extract=12, activation_type=["mlp_in", "mlp"], output_dir="mlp of {page}"
)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    write_checkpoint(folder / "model", "tiny", layers=24)
    write_tasks(folder / "tasks.jsonl", make_tasks(2, seed=0))
    return folder


@pytest.fixture(scope="module")
def hub(folder: Path) -> Iterator[FakeHub]:
    with FakeHub() as hub:
        hub.publish("Qwen/Qwen2.5-0.5B", folder / "model")
        yield hub


@pytest.mark.slow  # four processes with a model of 24 layers
@pytest.mark.parametrize("name", _HERE)
def test_the_blocks_of_a_page_run(name: str, folder: Path, hub: FakeHub) -> None:
    page = commands.ROOT / "docs" / name
    here = [it.text for it in blocks(page) if it.language == "python" and it.above != _BY_ANOTHER_TEST]
    assert here
    program = "\n".join((_SET_UP.format(page=name), *here)).replace('"activations', f'"residual of {name}')
    program = program.replace('dataset.batches(4096, inputs=("mlp_in"', 'of_mlp.batches(4096, inputs=("mlp_in"')
    done = commands.run(["-c", program], folder, hub.environment(folder / "hub"))
    assert done.returncode == 0, done.stderr


def test_no_python_is_in_a_block_that_says_no_language() -> None:
    """No test would run it."""
    indented = [
        it
        for page in PAGES
        if page.name not in ("api.md", "LOG.md")
        for it in blocks(page)
        if it.language == "indented"
    ]
    assert [f"{it.page.name}:{it.line}" for it in indented if _PYTHON.search(it.text)] == []


def test_every_page_with_python_is_run_by_a_test() -> None:
    found = {
        page.name for page in PAGES for it in blocks(page) if it.language == "python" and page.parent.name == "docs"
    }
    assert found - {"api.md"} == {*_HERE, *_ELSEWHERE}
    for page, test in _ELSEWHERE.items():
        assert re.search(rf"docs\b.*{page}", (commands.ROOT / "tests" / test).read_text())
