"""Each script of examples/ as a user starts it: a process of its own, in an empty folder.

`--quick` makes a script small. What a script finds out is its own business (docs/examples.md has
the figures of full runs); here it has to come to its end, say what it promises to say, and leave
the files that it names.
"""

import ast
import re
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
from commands import ROOT, start
from safetensors.numpy import load_file

FOLDED = "sae_folded.safetensors"
SCRIPTS = sorted((ROOT / "examples").glob("*.py"))


def ended(process: "subprocess.Popen[str]", timeout: float = 280) -> str:
    """What the process printed; it has to end well."""
    output, errors = process.communicate(timeout=timeout)
    assert process.returncode == 0, errors[-4000:]
    return output


def begin(script: str, folder: Path, *flags: str) -> "subprocess.Popen[str]":
    return start([ROOT / "examples" / script, *flags], folder)


def explained(output: str) -> list[float]:
    """The shares of the variance, in the order in which they were printed."""
    return [float(share) for share in re.findall(r"([\d.]+)% explained", output)]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_is_a_notebook_in_percent_format_that_the_index_names(script: Path) -> None:
    text = script.read_text(encoding="utf-8")
    assert text.startswith("# %% [markdown]\n# # ")
    cells = [line for line in text.splitlines() if line.startswith("# %%")]
    assert set(cells) == {"# %%", "# %% [markdown]"}
    assert '"--quick" in sys.argv' in text
    ast.parse(text)
    for page in ("examples/README.md", "docs/examples.md"):
        assert script.name in (ROOT / page).read_text(encoding="utf-8"), page


@pytest.fixture(scope="module")
def train_jax(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """What a run of train_jax.py printed that nobody disturbed, and its folder."""
    folder = tmp_path_factory.mktemp("train_jax")
    return ended(begin("train_jax.py", folder, "--quick")), folder


def test_train_jax(train_jax: tuple[str, Path]) -> None:
    output, folder = train_jax
    shares = explained(output)
    assert shares[-1] > shares[0] + 10
    assert re.search(r"\d+ of 128 features dead", output)
    off = re.search(r"its largest difference is (\S+)", output)
    assert off is not None
    assert float(off[1]) < 1e-4
    assert {name: array.shape for name, array in load_file(folder / FOLDED).items()} == {
        "W_enc": (64, 128),
        "b_enc": (128,),
        "W_dec": (128, 64),
        "b_dec": (64,),
    }


def test_train_jax_goes_on_where_it_was_killed(train_jax: tuple[str, Path], tmp_path: Path) -> None:
    process = begin("train_jax.py", tmp_path, "--quick")
    while not (tmp_path / "sae.msgpack").exists() and process.poll() is None:
        time.sleep(0.01)
    process.kill()
    process.communicate()
    assert not (tmp_path / FOLDED).exists()
    assert "going on after step" in ended(begin("train_jax.py", tmp_path, "--quick"))
    undisturbed = load_file(train_jax[1] / FOLDED)
    for name, array in load_file(tmp_path / FOLDED).items():
        np.testing.assert_array_equal(array, undisturbed[name], err_msg=name)


@pytest.mark.slow
def test_train_jax_in_full(tmp_path: Path) -> None:
    assert explained(ended(begin("train_jax.py", tmp_path)))[-1] > 95
