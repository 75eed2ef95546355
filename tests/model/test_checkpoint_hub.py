"""Checkpoints on a Hub, which is served on loopback.

The client is the real one, in a process of its own because it reads its settings on import.
"""

import json
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from fakes.hub import TOKEN, FakeHub

from layertap.demo.checkpoint import write_checkpoint
from layertap.model.weights import tensor_names

INDEX = "model.safetensors.index.json"
SMALL_FILES = {"config.json", "tokenizer.json", "tokenizer_config.json", INDEX}
EMBEDDING = "model.embed_tokens.weight"


OPEN = "open_checkpoint(place)"
REOPEN = "Checkpoint(Path(place), 'demo/tiny', read_config(Path(place)))"
_PROGRAM = """
import json, sys
from pathlib import Path
from layertap.errors import ModelError
from layertap.model.checkpoint import Checkpoint, open_checkpoint
from layertap.model.config import read_config

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
    """A checkpoint with its weights in five files; read only."""
    folder = tmp_path_factory.mktemp("checkpoint")
    write_checkpoint(folder, max_file_bytes=100_000)
    return folder


@pytest.fixture
def hub(several):
    with FakeHub() as hub:
        hub.publish("demo/tiny", several)
        yield hub


@pytest.fixture
def stopped_hub():
    with FakeHub() as hub:
        pass
    return hub


def run(environment: dict[str, str], place: str, *tensors: str, opening: str = OPEN) -> dict:
    """Where a checkpoint and the files of these tensors are, or the text of the ModelError, from another process."""
    command = [sys.executable, "-c", _PROGRAM.format(opening=opening), place, *tensors]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def weight_map(folder: Path) -> dict[str, str]:
    return json.loads((folder / INDEX).read_text())["weight_map"]


def test_a_hub_id_is_opened_with_its_small_files_alone(hub, tmp_path):
    opened = run(hub.environment(tmp_path), "demo/tiny")
    assert {path.name for path in Path(opened["folder"]).iterdir()} == SMALL_FILES
    assert sorted(hub.downloads()) == sorted(SMALL_FILES)


def test_only_weight_files_that_hold_a_needed_tensor_are_downloaded(hub, tmp_path, several):
    run(hub.environment(tmp_path), "demo/tiny")
    hub.requests.clear()
    opened = run(hub.environment(tmp_path), "demo/tiny", *tensor_names(1))
    needed = {weight_map(several)[name] for name in tensor_names(1)}
    assert sorted(hub.downloads()) == sorted(needed)
    assert 0 < len(needed) < 5
    assert opened["files"] == {name: f"{opened['folder']}/{weight_map(several)[name]}" for name in tensor_names(1)}


def test_what_was_downloaded_is_what_was_published(hub, tmp_path, several):
    opened = run(hub.environment(tmp_path), "demo/tiny", *tensor_names(4))
    for path in Path(opened["folder"]).iterdir():
        assert path.read_bytes() == (several / path.name).read_bytes()


def test_weights_come_from_the_commit_that_the_config_came_from(hub, tmp_path, several):
    environment = hub.environment(tmp_path / "home")
    opened = run(environment, "demo/tiny")
    write_checkpoint(tmp_path / "newer", seed=1, max_file_bytes=100_000)
    hub.publish("demo/tiny", tmp_path / "newer")
    (path,) = run(environment, opened["folder"], EMBEDDING, opening=REOPEN)["files"].values()
    assert Path(path).read_bytes() == (several / weight_map(several)[EMBEDDING]).read_bytes()


def test_a_download_that_breaks_off_goes_on_where_it_stopped(hub, tmp_path, several):
    folder = tmp_path / "large"
    folder.mkdir()
    shutil.copy(several / "config.json", folder)
    content = random.Random(0).randbytes(16 << 20)  # the client keeps what it got in pieces of 10 MB
    (folder / "model.safetensors").write_bytes(content)
    hub.publish("demo/large", folder)
    hub.breaks_off["model.safetensors"] = 12 << 20
    (path,) = run(hub.environment(tmp_path / "home"), "demo/large", EMBEDDING)["files"].values()
    assert Path(path).read_bytes() == content
    weights = [request for request in hub.requests if request.path.endswith(".safetensors")]
    assert [(request.method, request.first_byte > 0) for request in weights] == [
        ("HEAD", False),
        ("GET", False),
        ("GET", True),
    ]


def test_a_model_without_safetensors_is_refused(hub, tmp_path, several):
    folder = tmp_path / "old"
    folder.mkdir()
    shutil.copy(several / "config.json", folder)
    (folder / "pytorch_model.bin").touch()
    hub.publish("demo/old", folder)
    error = run(hub.environment(tmp_path / "home"), "demo/old", EMBEDDING)["error"]
    assert "model.safetensors: no such file; Layertap reads safetensors" in error


@pytest.mark.parametrize("settings", [{}, {"HF_TOKEN": TOKEN}], ids=["logged out", "logged in"])
def test_an_unknown_model_is_said_to_be_unknown(hub, tmp_path, settings):
    error = run(hub.environment(tmp_path, **settings), "demo/unknown")["error"]
    assert error.startswith(
        "--model_path demo/unknown: no such folder here, and the Hugging Face Hub has no such model"
    )


def test_a_private_model_is_opened_with_a_token_only(hub, tmp_path):
    hub.private.add("demo/tiny")
    assert "log in with `hf auth login`" in run(hub.environment(tmp_path), "demo/tiny")["error"]
    assert "folder" in run(hub.environment(tmp_path, HF_TOKEN=TOKEN), "demo/tiny")


def test_a_gated_model_asks_to_accept_its_terms(hub, tmp_path):
    hub.gated.add("demo/tiny")
    error = run(hub.environment(tmp_path, HF_TOKEN=TOKEN), "demo/tiny")["error"]
    assert "--model_path demo/tiny" in error
    assert "accept the terms" in error


def test_a_token_that_is_not_valid_is_said_to_be_so(hub, tmp_path):
    error = run(hub.environment(tmp_path, HF_TOKEN="hf_expired"), "demo/tiny")["error"]
    assert "Invalid credentials in Authorization header" in error


def test_a_hub_that_is_down_is_said_to_be_so(hub, tmp_path):
    hub.outage = 503
    error = run(hub.environment(tmp_path), "demo/tiny")["error"]
    assert "could not be fetched from the Hugging Face Hub" in error
    assert "503" in error


def test_a_connection_that_ends_without_an_answer_is_an_error_of_ours(hub, tmp_path):
    hub.hangs_up = True
    error = run(hub.environment(tmp_path), "demo/tiny")["error"]
    assert "could not be fetched from the Hugging Face Hub" in error


def test_without_a_network_the_error_says_to_give_a_folder(stopped_hub, tmp_path):
    error = run(stopped_hub.environment(tmp_path), "demo/tiny")["error"]
    assert error.startswith("--model_path demo/tiny: no such folder here, and config.json")
    assert "give the folder of a checkpoint downloaded elsewhere" in error


def test_offline_with_nothing_in_the_cache_the_error_says_to_give_a_folder(hub, tmp_path):
    error = run(hub.environment(tmp_path, HF_HUB_OFFLINE="1"), "demo/tiny")["error"]
    assert "give the folder of a checkpoint downloaded elsewhere" in error
    assert hub.requests == []


def test_offline_the_cache_is_enough(hub, tmp_path):
    online = run(hub.environment(tmp_path), "demo/tiny", *tensor_names(1))
    hub.requests.clear()
    assert run(hub.environment(tmp_path, HF_HUB_OFFLINE="1"), "demo/tiny", *tensor_names(1)) == online
    assert hub.requests == []


def test_without_a_network_the_cache_is_enough(hub, stopped_hub, tmp_path):
    online = run(hub.environment(tmp_path), "demo/tiny", *tensor_names(1))
    assert run(stopped_hub.environment(tmp_path), "demo/tiny", *tensor_names(1)) == online


def test_offline_a_weight_file_that_was_never_fetched_is_named(hub, tmp_path):
    run(hub.environment(tmp_path), "demo/tiny")
    error = run(hub.environment(tmp_path, HF_HUB_OFFLINE="1"), "demo/tiny", EMBEDDING)["error"]
    assert "model-00001-of-00005.safetensors could not be fetched" in error
