"""Checkpoints on a Hub, which is served on loopback.

The client is the real one, in a process of its own because it reads its settings on import.
"""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from adapters import write_by_hand
from fakes.hub import TOKEN, FakeHub

from layertap.demo.checkpoint import write_checkpoint
from layertap.model.config import published_config
from layertap.model.weights import tensor_names

INDEX = "model.safetensors.index.json"
SMALL_FILES = {"config.json", "tokenizer.json", "tokenizer_config.json", INDEX}
EMBEDDING = "model.embed_tokens.weight"

OPEN = "open_checkpoint(place)"
OPEN_TAG = "open_checkpoint(place, 'v1')"
REOPEN = "Checkpoint(Path(place), 'demo/tiny', read_config(Path(place)))"
_PROGRAM = """
import json, sys
from pathlib import Path
from layertap.errors import ModelError
from layertap.model.checkpoint import Checkpoint, open_checkpoint
from layertap.model.families import read_config

place, *tensors = sys.argv[1:]
try:
    checkpoint = {opening}
    files = checkpoint.tensor_files(tensors) if tensors else {{}}
    print(json.dumps({{"folder": checkpoint.folder, "files": files}}, default=str))
except ModelError as error:
    print(json.dumps({{"error": str(error)}}))
"""


@pytest.fixture(scope="module")
def several(tmp_path_factory) -> Path:
    """A checkpoint with its weights in five files. Tests only read it."""
    folder = tmp_path_factory.mktemp("checkpoint")
    write_checkpoint(folder, max_file_bytes=100_000)
    return folder


@pytest.fixture
def hub(several):
    with FakeHub() as hub:
        hub.publish("demo/tiny", several)
        yield hub


def run(environment: dict[str, str], place: str, *tensors: str, opening: str = OPEN) -> dict:
    """Return where a checkpoint and the files of these tensors are, or the text of the ModelError.
    Another process looks for them.
    """
    command = [sys.executable, "-c", _PROGRAM.format(opening=opening), place, *tensors]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def weight_map(folder: Path) -> dict[str, str]:
    return json.loads((folder / INDEX).read_text())["weight_map"]


@pytest.mark.whole
def test_a_hub_id_is_opened_with_its_small_files_alone(hub, tmp_path):
    opened = run(hub.environment(tmp_path), "demo/tiny")
    assert {path.name for path in Path(opened["folder"]).iterdir()} == SMALL_FILES
    assert sorted(hub.downloads()) == sorted(SMALL_FILES)


@pytest.mark.whole
def test_only_weight_files_that_hold_a_needed_tensor_are_downloaded(hub, tmp_path, several):
    run(hub.environment(tmp_path), "demo/tiny")
    hub.requests.clear()
    opened = run(hub.environment(tmp_path), "demo/tiny", *tensor_names(published_config("0.5b"), 1))
    needed = {weight_map(several)[name] for name in tensor_names(published_config("0.5b"), 1)}
    assert sorted(hub.downloads()) == sorted(needed)
    assert 0 < len(needed) < 5
    assert opened["files"] == {
        name: f"{opened['folder']}/{weight_map(several)[name]}" for name in tensor_names(published_config("0.5b"), 1)
    }


@pytest.mark.whole
def test_weights_come_from_the_commit_that_the_config_came_from(hub, tmp_path, several):
    environment = hub.environment(tmp_path / "home")
    opened = run(environment, "demo/tiny")
    write_checkpoint(tmp_path / "newer", seed=1, max_file_bytes=100_000)
    hub.publish("demo/tiny", tmp_path / "newer")
    (path,) = run(environment, opened["folder"], EMBEDDING, opening=REOPEN)["files"].values()
    assert Path(path).read_bytes() == (several / weight_map(several)[EMBEDDING]).read_bytes()


@pytest.mark.whole
@pytest.mark.parametrize(
    ("place", "opening"), [("demo/tiny@v1", OPEN), ("demo/tiny", OPEN_TAG), ("demo/tiny@v1", OPEN_TAG)]
)
def test_a_revision_is_the_commit_that_is_read(hub, tmp_path, several, place, opening):
    first = hub.tags["v1"] = hub.publish("demo/tiny", several)
    write_checkpoint(tmp_path / "newer", seed=1, max_file_bytes=100_000)
    newer = hub.publish("demo/tiny", tmp_path / "newer")
    environment = hub.environment(tmp_path / "home")
    opened = run(environment, place, EMBEDDING, opening=opening)
    assert Path(opened["folder"]).name == first != newer
    (path,) = opened["files"].values()
    assert Path(path).read_bytes() == (several / weight_map(several)[EMBEDDING]).read_bytes()
    hub.requests.clear()
    assert run({**environment, "HF_HUB_OFFLINE": "1"}, place, EMBEDDING, opening=opening) == opened


@pytest.mark.whole
def test_a_commit_can_be_given_and_an_unknown_revision_is_named(hub, tmp_path, several):
    environment = hub.environment(tmp_path / "home")
    commit = hub.publish("demo/tiny", several)
    assert Path(run(environment, f"demo/tiny@{commit}")["folder"]).name == commit
    error = run(environment, "demo/tiny@no-such")["error"]
    assert error == "--model_path demo/tiny@no-such: the model has no branch, tag or commit of this name on the Hub"
    error = run(environment, "demo/tiny@other", opening=OPEN_TAG)["error"]
    assert error == "--model_path demo/tiny@other and --revision v1 contradict each other; give one of the two"


@pytest.mark.whole
def test_the_cache_folder_of_a_repository_is_the_commit_that_its_refs_say(hub, tmp_path, several):
    hub.tags["v1"] = hub.publish("demo/tiny", several)
    environment = hub.environment(tmp_path / "home")
    opened = run(environment, "demo/tiny@v1", EMBEDDING)
    root = Path(opened["folder"]).parents[1]
    assert root.name == "models--demo--tiny"
    assert [path.name for path in (root / "refs").iterdir()] == ["v1"]
    hub.requests.clear()
    assert run(environment, str(root), EMBEDDING) == opened  # the only one
    assert run(environment, str(root), EMBEDDING, opening=OPEN_TAG) == opened
    write_checkpoint(tmp_path / "newer", seed=1, max_file_bytes=100_000)
    commit = hub.publish("demo/tiny", tmp_path / "newer")
    newest = run(environment, "demo/tiny", EMBEDDING)
    assert Path(newest["folder"]).name == commit
    assert run(environment, str(root), EMBEDDING) == newest
    assert run(environment, str(root), EMBEDDING, opening=OPEN_TAG) == opened
    (root / "refs" / "main").unlink()
    error = run(environment, str(root))["error"]
    assert f"{root}: this cache of a Hub repository does not hold main; it has" in error


@pytest.mark.whole
def test_an_adapter_on_the_hub_is_fetched_like_a_model(hub, tmp_path):
    hub.tags["v1"] = hub.publish("demo/lora", write_by_hand(tmp_path / "one"))
    hub.publish("demo/lora", write_by_hand(tmp_path / "two", lora_alpha=8))
    program = """
import sys
from layertap.model.checkpoint import open_checkpoint
for adapter in open_checkpoint("demo/tiny", None, sys.argv[1:]).adapters:
    print([update.scale for update in adapter.updates.values()])
"""
    command = [sys.executable, "-c", program, "demo/lora", "demo/lora@v1"]
    done = subprocess.run(command, env=hub.environment(tmp_path / "home"), capture_output=True, text=True)
    assert done.stdout == "[4.0]\n[2.0]\n", done.stderr
    opening = "open_checkpoint('demo/tiny', None, [place])"
    error = run(hub.environment(tmp_path / "home"), "demo/none", opening=opening)["error"]
    assert error.startswith("--adapter demo/none: no such folder here, and the Hugging Face Hub has no such model")


@pytest.mark.whole
def test_an_adapter_in_a_models_repository_is_applied_or_refused(hub, tmp_path, several):
    hub.publish("demo/both", write_by_hand(shutil.copytree(several, tmp_path / "both")))
    hub.publish("demo/lora", write_by_hand(tmp_path / "lora"))
    environment = hub.environment(tmp_path / "home")
    assert "give --adapter demo/both too" in run(environment, "demo/both")["error"]
    assert "folder" in run(environment, "demo/both", opening="open_checkpoint(place, None, [place])")
    error = run(environment, "demo/lora")["error"]
    assert "is an adapter without a model; give --model_path someone/base --adapter demo/lora" in error


ERRORS = {
    "unknown": ({}, {}, "unknown: no such folder here, and the Hugging Face Hub has no such model"),
    "unknown, logged in": ({}, {"HF_TOKEN": TOKEN}, "and the Hugging Face Hub has no such model"),
    "private": ({"private": {"demo/tiny"}}, {}, "log in with `hf auth login`"),
    "gated": ({"gated": {"demo/tiny"}}, {"HF_TOKEN": TOKEN}, "accept the terms"),
    "invalid token": ({}, {"HF_TOKEN": "hf_expired"}, "Invalid credentials in Authorization header"),
    "down": ({"outage": 503}, {}, "could not be fetched from the Hugging Face Hub"),
    "hangs up": (
        {"hangs_up": True},
        {},
        "no such folder here, and config.json, tokenizer.json, tokenizer_config.json and 5 more files could not be",
    ),
    "no network": ({}, {"HF_ENDPOINT": "http://127.0.0.1:9"}, "could not be fetched from the Hugging Face Hub"),
    "offline": ({}, {"HF_HUB_OFFLINE": "1"}, "give the folder of a checkpoint downloaded elsewhere"),
}


@pytest.mark.whole
@pytest.mark.parametrize("case", ERRORS)
def test_what_the_hub_refuses_is_said_in_our_words(hub, tmp_path, case):
    state, settings, words = ERRORS[case]
    vars(hub).update(state)
    name = "demo/unknown" if "unknown" in case else "demo/tiny"
    error = run(hub.environment(tmp_path, **settings), name)["error"]
    assert error.startswith(f"--model_path {name}")
    assert words in error
    assert "503" in error or case != "down"
    assert hub.requests == [] or case != "offline"


@pytest.mark.whole
def test_offline_the_cache_is_enough(hub, tmp_path):
    online = run(hub.environment(tmp_path), "demo/tiny", *tensor_names(published_config("0.5b"), 1))
    hub.requests.clear()
    assert (
        run(hub.environment(tmp_path, HF_HUB_OFFLINE="1"), "demo/tiny", *tensor_names(published_config("0.5b"), 1))
        == online
    )
    assert hub.requests == []


@pytest.mark.whole
def test_offline_a_weight_file_that_was_never_fetched_is_named(hub, tmp_path):
    run(hub.environment(tmp_path), "demo/tiny")
    error = run(hub.environment(tmp_path, HF_HUB_OFFLINE="1"), "demo/tiny", EMBEDDING)["error"]
    assert re.search(r"model-00001-of-00005.safetensors\b.* could not be fetched", error)
