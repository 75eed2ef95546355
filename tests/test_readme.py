"""Every command that README.md prints, as it is printed; Hub, bucket and data are on this machine.

Commands that install (`make`, `pip`) and enter an environment are left out, and so is `--open`,
which would open a browser.
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import commands
import pytest
from fakes.gcs import FakeGcs
from fakes.hub import FakeHub

import layertap
from layertap.cli import main
from layertap.demo.checkpoint import write_checkpoint
from layertap.demo.tasks import make_tasks, write_tasks

README = (commands.ROOT / "README.md").read_text(encoding="utf-8")
_CHAT_TEMPLATE = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
_INSTALLS = re.compile(r"(make|pip|\.) ")


def section(title: str) -> str:
    """The text below a heading of the second level."""
    return README.split(f"\n## {title}\n")[1].split("\n## ")[0]


def shell_blocks(text: str) -> list[str]:
    """The commands of each block, without those that install."""
    blocks = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    kept = ["\n".join(line for line in block.splitlines() if not _INSTALLS.match(line)) for block in blocks]
    return [block.replace(" --open", "") for block in kept if block]


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeHub]:
    """A Hub that has small models of 24 layers under the printed names."""
    folder = tmp_path_factory.mktemp("model")
    write_checkpoint(folder, "tiny", layers=24)
    instruct = tmp_path_factory.mktemp("instruct")
    write_checkpoint(instruct, "tiny", layers=24)
    (instruct / "chat_template.jinja").write_text(_CHAT_TEMPLATE)
    with FakeHub() as hub:
        hub.publish("Qwen/Qwen2.5-0.5B", folder)
        hub.publish("Qwen/Qwen2.5-0.5B-Instruct", instruct)
        yield hub


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder like a clone, with data of each kind, and `python` and `layertap` on its path."""
    folder = tmp_path_factory.mktemp("clone")
    for name in ("extract_activations.py", "examples", "scripts"):
        (folder / name).symlink_to(commands.ROOT / name)
    (folder / "bin").mkdir()
    for name, arguments in (("python", ""), ("python3", ""), ("layertap", "-m layertap")):
        (folder / "bin" / name).write_text(f'#!/bin/sh\nexec {sys.executable} {arguments} "$@"\n')
        (folder / "bin" / name).chmod(0o755)
    write_tasks(folder / "tasks.jsonl", make_tasks(1))
    chat = [{"role": "user", "content": "What is 2 + 2?"}, {"role": "assistant", "content": "It is 4."}]
    (folder / "chats.jsonl").write_text(json.dumps({"messages": chat}) + "\n")
    (folder / "texts.jsonl").write_text(json.dumps({"text": "A long text about many things. " * 200}) + "\n")
    dataset = folder / "your-name" / "your-dataset"
    dataset.mkdir(parents=True)
    (dataset / "train.jsonl").write_text(json.dumps({"text": "A row of the Hub."}) + "\n")
    return folder


def run(command: str, project: Path, hub: FakeHub, **environment: str) -> str:
    done = subprocess.run(
        ["bash", "-euc", command],
        cwd=project,
        env={
            **hub.environment(project / "hub"),
            "PATH": f"{project / 'bin'}:{os.environ['PATH']}",
            "PYTHONPATH": str(commands.ROOT / "src"),
            **environment,
        },
        capture_output=True,
        text=True,
        timeout=1100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_is_short() -> None:
    assert len(README.splitlines()) <= 250


@pytest.mark.slow
@pytest.mark.timeout(1200)  # minutes on a quiet machine
def test_five_minutes_end_with_an_autoencoder_and_its_page(project: Path, hub: FakeHub) -> None:
    run("layertap demo", project, hub)  # as `make demo` does
    output = "".join(
        run(block, project, hub) for block in shell_blocks(section("Five minutes, from nothing to a trained SAE"))
    )
    assert float(re.findall(r"([\d.]+)% explained", output)[-1]) > 95
    assert (project / "layertap.html").exists()
    assert 'id="features-0"' in (project / "features.html").read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_each_kind_of_data(project: Path, hub: FakeHub) -> None:
    blocks = shell_blocks(section("Your data"))
    assert len(blocks) == 4
    for block in blocks:
        run(block, project, hub)
    folders = {"activations": (6, 12, 18), "chats": (12,), "texts": (12,), "hub": (12,)}
    for name, layers in folders.items():
        assert layertap.ActivationDataset(project / name).layers == layers
    code = re.search(r"```python\n(.*?)```", section("Your data"), re.DOTALL)
    assert code is not None
    run(f"python -c '{code[1]}'", project, hub)


@pytest.mark.slow
def test_scaling_up(project: Path, hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bucketed, shared, tpus = shell_blocks(section("Scale up"))
    with FakeGcs("your-bucket") as bucket:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", bucket.endpoint)
        own = "--output_dir {0} --checkpoint_dir {0}-state".format
        run(bucketed.rstrip() + " --layers_to_extract 0", project, hub)
        assert main(["verify", "gs://your-bucket/activations"]) == 0
        more = " --model_path Qwen/Qwen2.5-0.5B --layers_to_extract 0 " + own(tmp_path / "b")
        run(shared.replace("--num_shards 64", "--num_shards 1").rstrip() + more, project, hub)
        assert main(["verify", str(tmp_path / "b")]) == 0
    assert "us-central1-b" in run(tpus, project, hub)
