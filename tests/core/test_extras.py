"""The command that adds an extra works, wherever Layertap was installed from."""

import json
import re
import shlex
import sys
import tomllib
from pathlib import Path

import commands
import pytest
from fsspec.registry import _registry

from layertap.core import extras
from layertap.dataset.places import locate
from layertap.errors import DatasetError, UsageError
from layertap.objects import open_store

_MADE_FROM = {
    "editable": (
        {"url": "file:///home/me/my%20code/layertap", "dir_info": {"editable": True}},
        ["--editable", "/home/me/my code/layertap[s3]"],
    ),
    "folder": ({"url": "file:///home/me/layertap", "dir_info": {}}, ["/home/me/layertap[s3]"]),
    "wheel": (
        {"url": "https://host/layertap-0.2.0-py3-none-any.whl", "archive_info": {}},
        ["layertap[s3] @ https://host/layertap-0.2.0-py3-none-any.whl"],
    ),
    "git": (
        {"url": "https://host/layertap.git", "vcs_info": {"vcs": "git", "commit_id": "abc123"}},
        ["layertap[s3] @ git+https://host/layertap.git@abc123"],
    ),
}


@pytest.mark.parametrize("origin", _MADE_FROM)
def test_pip_is_given_the_place_that_it_took_layertap_from(monkeypatch: pytest.MonkeyPatch, origin: str) -> None:
    written, wanted = _MADE_FROM[origin]
    monkeypatch.setattr(extras, "distribution", lambda name: _Distribution(json.dumps(written)))
    assert shlex.split(extras.install_command("s3")) == [sys.executable, "-m", "pip", "install", *wanted]


def test_the_folder_is_named_where_pip_wrote_down_no_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extras, "distribution", lambda name: _Distribution(None))
    assert extras.install_command("s3").endswith(" -m pip install '.[s3]', in Layertap's folder")


def test_the_folder_is_named_where_layertap_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere(name: str) -> None:
        raise extras.PackageNotFoundError(name)

    monkeypatch.setattr(extras, "distribution", nowhere)
    assert extras.install_command("s3").endswith(" -m pip install '.[s3]', in Layertap's folder")


def test_no_message_and_no_page_names_an_index_that_has_no_layertap() -> None:
    root = Path(__file__).resolve().parents[2]
    texts = [*root.glob("*.md"), *root.glob("docs/*.md"), *root.glob("src/**/*.py")]
    texts = [path for path in texts if path.name not in ("CHANGELOG.md", "LOG.md", "extras.py")]
    assert len(texts) > 100
    assert not [path.name for path in texts if "install 'layertap[" in path.read_text()]


def test_each_kind_of_url_names_what_reads_it() -> None:
    assert extras.needed_for("s3://bucket/x") == extras.install_command("s3")
    assert extras.needed_for("gs://bucket/x").endswith(" -m pip install google-cloud-storage gcsfs")
    assert extras.needed_for("abfs://bucket/x") == "the fsspec package for that scheme"


_WITHOUT_CLOUDS = """
import sys
for name in ("google.cloud", "google.auth", "google.api_core", "requests", "gcsfs", "s3fs", "aiohttp"):
    sys.modules[name] = None  # an image with JAX for CUDA does not have them
from layertap.cli import main
sys.exit(main())
"""


_READ_ONLY = """
import sys
for name in ("jax", "flax", "huggingface_hub", "jinja2", "safetensors", "tokenizers"):
    sys.modules[name] = None  # docs/reading.md installs none of these
import layertap
from layertap.cli import main
dataset = layertap.ActivationDataset("activations")
assert dataset[0].activation(layer=0).shape == (len(dataset[0].token_ids), 64)
sys.stdout, out = sys.stderr, sys.stdout
print((len(dataset), main(["verify", "activations"])), file=out)
"""


@pytest.mark.whole
def test_a_run_to_a_local_folder_needs_no_library_of_a_cloud(
    tiny_model: Path, demo_tasks: Path, tmp_path: Path
) -> None:
    flags = ["--dataset_path", demo_tasks, "--model_path", tiny_model, "--layers_to_extract", "0", "--max_tasks", "1"]
    done = commands.run(["-c", _WITHOUT_CLOUDS, "extract", *flags, "--predictions_per_task", "1"], tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "activations" / "shard_0001.pkl.gz").is_file()
    read = commands.run(["-c", _READ_ONLY], tmp_path)
    assert (read.returncode, read.stdout) == (0, "(1, 0)\n"), read.stderr


def test_without_googles_library_a_bucket_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "layertap.objects.gcs", raising=False)
    monkeypatch.setitem(sys.modules, "google.cloud", None)
    monkeypatch.setitem(sys.modules, "google.cloud.storage", None)
    with pytest.raises(UsageError, match=r"gs:// needs .* -m pip install google-cloud-storage gcsfs"):
        open_store("gs://bucket/x")


def test_without_s3s_library_a_dataset_there_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(_registry, "s3", raising=False)  # where an earlier test has used it
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(DatasetError, match=r"it needs .* -m pip install .*\[s3\]"):
        locate("s3://bucket/tasks.jsonl")


def test_google_cloud_storage_is_in_every_installation() -> None:
    project = tomllib.loads((commands.ROOT / "pyproject.toml").read_text())["project"]
    names = {re.split(r"[<>=!;\[ ]", line)[0] for line in project["dependencies"]}
    assert {"google-cloud-storage", "gcsfs"} <= names
    assert not {"libtpu", "torch", "ray", "datasets", "s3fs"} & names


class _Distribution:
    def __init__(self, text: str | None) -> None:
        self.text = text

    def read_text(self, name: str) -> str | None:
        assert name == "direct_url.json"
        return self.text
