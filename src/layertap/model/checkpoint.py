"""A Hugging Face checkpoint: where its files are, in a folder or on the Hub.

A Hub id is fetched with `huggingface_hub` into its ordinary cache, in two steps: first config, tokenizer and weight
index, then, once the taps are known, only the safetensors files that hold a needed tensor. A 72B checkpoint tapped at
layer 20 downloads a quarter of its files.

`identity` tells two checkpoints apart without reading them whole: for each safetensors file its header (names,
shapes, offsets) and the first 4 KiB of each needed tensor. Hashing every byte of a 72B checkpoint would take longer
than loading it does; a fine-tuned variant differs in every tensor.
"""

import hashlib
import json
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, RepositoryNotFoundError

from layertap.errors import ModelError
from layertap.model.config import Qwen2Config, read_config

_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_SMALL_FILES = ["config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja", _INDEX]
_SAMPLED_BYTES = 4096


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose small files (config, tokenizer, index) are in `folder`; `hub_id` is None for a local one."""

    folder: Path
    hub_id: str | None
    config: Qwen2Config

    def tensor_files(self, names: Iterable[str]) -> dict[str, Path]:
        """The safetensors file of each tensor, fetched first where the checkpoint is on the Hub.

        Raises ModelError naming every tensor that the checkpoint lacks.
        """
        wanted = list(names)
        index = self._weight_map()
        if index is None:
            self._fetch([_SINGLE])
            return dict.fromkeys(wanted, self._existing(_SINGLE))
        missing = [name for name in wanted if name not in index]
        if missing:
            raise ModelError(f"{self.folder / _INDEX}: lacks {len(missing)} tensors: {', '.join(missing[:5])}")
        self._fetch(sorted({index[name] for name in wanted}))
        return {name: self._existing(index[name]) for name in wanted}

    def identity(self, names: Iterable[str]) -> str:
        """A sha256 (hex) over the config and, for the needed tensors, headers and leading bytes."""
        digest = hashlib.sha256((self.folder / "config.json").read_bytes())
        by_file: dict[Path, list[str]] = {}
        for name, path in sorted(self.tensor_files(names).items()):
            by_file.setdefault(path, []).append(name)
        for path, tensors in sorted(by_file.items()):
            _update_with_file(digest, path, tensors)
        return digest.hexdigest()

    def _weight_map(self) -> dict[str, str] | None:
        path = self.folder / _INDEX
        if not path.exists():
            return None
        try:
            return dict(json.loads(path.read_text(encoding="utf-8"))["weight_map"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ModelError(f"{path}: is not a safetensors index with a weight_map: {error!r}") from error

    def _existing(self, file: str) -> Path:
        path = self.folder / file
        if not path.exists():
            raise ModelError(
                f"{path}: no such file; Layertap reads safetensors (model.safetensors, or an index of several)"
            )
        return path

    def _fetch(self, files: list[str]) -> None:
        if self.hub_id is not None:
            _download(self.hub_id, files)


def open_checkpoint(model_path: str) -> Checkpoint:
    """Open the checkpoint in a folder, or fetch the small files of a Hub id such as `Qwen/Qwen2.5-0.5B`.

    Raises ModelError for a missing folder, an unknown id, no network, or a model that Layertap does not run.
    """
    folder = Path(model_path).expanduser()
    if folder.is_dir():
        return Checkpoint(folder, None, read_config(folder))
    if folder.exists() or model_path.count("/") != 1 or model_path.startswith((".", "~")):
        raise ModelError(f"--model_path {model_path}: neither a folder nor a Hub id such as Qwen/Qwen2.5-0.5B")
    fetched = _download(model_path, _SMALL_FILES)
    return Checkpoint(fetched, model_path, read_config(fetched))


def _download(hub_id: str, files: list[str]) -> Path:
    try:
        return Path(snapshot_download(hub_id, allow_patterns=files))
    except RepositoryNotFoundError as error:
        raise ModelError(
            f"--model_path {hub_id}: no such folder here, and the Hugging Face Hub has no such model"
            " (or it is private: log in with `hf auth login`)"
        ) from error
    except (LocalEntryNotFoundError, HfHubHTTPError, HFValidationError, OSError) as error:
        raise ModelError(
            f"--model_path {hub_id}: no such folder here, and {', '.join(files)} could not be fetched from the Hugging"
            f" Face Hub: {error}. Offline, download the checkpoint elsewhere and give its folder."
        ) from error


def _update_with_file(digest: "hashlib._Hash", path: Path, tensors: list[str]) -> None:
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = file.read(length)
            offsets = json.loads(header)
            for name in tensors:
                begin, end = offsets[name]["data_offsets"]
                file.seek(8 + length + begin)
                digest.update(name.encode() + file.read(min(_SAMPLED_BYTES, end - begin)))
    except KeyError as error:
        raise ModelError(f"{path}: lacks the tensor {error.args[0]}") from error
    except (OSError, ValueError, struct.error) as error:
        raise ModelError(f"{path}: is not a safetensors file: {error}") from error
