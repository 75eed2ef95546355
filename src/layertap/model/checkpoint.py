"""A Hugging Face checkpoint, in a folder or on the Hub: its files, and its tensors by name.

`huggingface_hub` fetches a Hub id into its ordinary cache, in two steps: first config, tokenizer
and weight index; then, once the taps are known, only the safetensors files that hold a needed
tensor. A 72B checkpoint tapped at layer 20 downloads a quarter of its files. The second step asks
for the commit of the first step, so an update of the repository in between never mixes versions.

`identity` tells two checkpoints apart without reading them whole. It reads the dtype, the shape and
the leading numbers of each needed tensor: all of a vector, the first row of a matrix. It ignores
tensors above the last tap and how tensors are split into files: no activation depends on them.
Hashing every byte of a 72B checkpoint would take longer than loading it, and training changes first
rows too. `identity` cannot see that someone edited a matrix further down by hand. Adapters have
identities of their own.
"""

import hashlib
import json
from collections.abc import Container, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from layertap.errors import ModelError
from layertap.model import hub
from layertap.model.adapters import ADAPTER_CONFIG, Adapter, open_adapter, read_settings
from layertap.model.config import DecoderConfig
from layertap.model.families import read_config
from layertap.model.layout import PREFIXES
from layertap.model.tensors import Tensor, names_in, open_safetensors

_FLAG = "--model_path"
_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_PARTS = "model-*-of-*.safetensors"
_EMBEDDING = "model.embed_tokens.weight"
_HEADS = ("lm_head.weight", "language_model.lm_head.weight")
_CONFIG = "config.json"
_TOKENIZER_FILES = [
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "additional_chat_templates/tool_use.jinja",
]
_SMALL_FILES = [_CONFIG, *_TOKENIZER_FILES, _INDEX, ADAPTER_CONFIG]


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose small files are in `folder`; `hub_id` is None for a local one."""

    folder: Path
    hub_id: str | None
    config: DecoderConfig
    adapters: tuple[Adapter, ...] = ()
    """Adapters merged into its weights, in this order."""

    def tensor_files(self, names: Iterable[str]) -> dict[str, Path]:
        """The safetensors file of each tensor; fetches it first if the checkpoint is on the Hub.

        Raises ModelError if there is none, or if the index lacks tensors; it names the first five.
        """
        return {name: path for name, (path, _) in self._places(names).items()}

    def _places(self, names: Iterable[str]) -> dict[str, tuple[Path, str]]:
        """The file of each tensor, and the tensor's name there."""
        wanted = list(names)
        index = self._weight_map()
        if index is None:
            self._fetch([_SINGLE])
            index = dict.fromkeys(names_in(self.folder / _SINGLE), _SINGLE)
            stored = {name: _stored_name(name, index, tied=self.config.tie_word_embeddings) or name for name in wanted}
            return {name: (self.folder / _SINGLE, stored[name]) for name in wanted}
        found = {name: _stored_name(name, index, tied=self.config.tie_word_embeddings) for name in wanted}
        _refuse_missing(self.folder / _INDEX, [name for name, stored in found.items() if stored is None])
        places = {name: (self.folder / index[stored], stored) for name, stored in found.items() if stored is not None}
        self._fetch(sorted({path.name for path, _ in places.values()}))
        return places

    def _fetch(self, files: list[str]) -> None:
        """Make sure that these files are in the folder."""
        if self.hub_id is not None:
            hub.download(_FLAG, self.hub_id, files, revision=self.folder.name)
        for path in (self.folder / file for file in files):
            if not path.exists():
                raise ModelError(
                    f"{path}: no such file; Layertap reads safetensors (model.safetensors, or an index of several)"
                    + self._instead()
                )

    def _instead(self) -> str:
        """The other weights in the folder, for a message."""
        others = sorted(path.name for path in self.folder.glob("pytorch_model*.bin"))
        return f"; {others[0]} is there: save the model once more with transformers, which writes it" if others else ""

    @contextmanager
    def open_tensors(self, names: Iterable[str]) -> Iterator[dict[str, Tensor]]:
        """The named tensors that their files hold; fetches the files first if they are on the Hub.

        Raises ModelError as `tensor_files` does, and for a file that is not whole safetensors.
        """
        places = self._places(names)
        with ExitStack() as stack:
            paths = sorted({path for path, _ in places.values()})
            opened = {path: stack.enter_context(open_safetensors(path)) for path in paths}
            held = {path: set(file.keys()) for path, file in opened.items()}
            yield {
                name: Tensor(name, path, opened[path].get_slice(stored))
                for name, (path, stored) in places.items()
                if stored in held[path]
            }

    def identity(self, names: Iterable[str]) -> str:
        """A sha256 of `config.json` and each tensor's name, dtype, shape and leading numbers.

        Raises ModelError as `open_tensors` does, and if a file lacks a tensor.
        """
        digest = hashlib.sha256((self.folder / "config.json").read_bytes())
        wanted = sorted(names)
        with self.open_tensors(wanted) as tensors:
            _refuse_missing(self.folder, [name for name in wanted if name not in tensors])
            for name, tensor in tensors.items():
                leading = tensor.read(slice(None)) if len(tensor.shape) == 1 else tensor.read(slice(1))
                digest.update(f"{name} {tensor.dtype} {tensor.shape}".encode() + leading.tobytes())
        return digest.hexdigest()

    def _weight_map(self) -> dict[str, str] | None:
        """Tensor -> file; None if one file has all. If that file is there, it counts, and not an
        index beside it, as in transformers.
        """
        path = self.folder / _INDEX
        if (self.folder / _SINGLE).exists():
            return None
        if not path.exists():
            parts = sorted(self.folder.glob(_PARTS)) if self.hub_id is None else []
            return {name: part.name for part in parts for name in names_in(part)} or None
        try:
            index: dict[str, str] = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
            misplaced = [file for file in index.values() if Path(file).name != file]
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ModelError(f"{path}: is not a safetensors index with a weight_map: {error!r}") from error
        if misplaced:
            raise ModelError(f"{path}: {misplaced[0]!r} is not the name of a file beside the index")
        return index


def open_checkpoint(model_path: str, revision: str | None = None, adapters: Sequence[str] = ()) -> Checkpoint:
    """Open the checkpoint in a folder, or fetch the small files of one on the Hub. Each adapter may
    be in a folder or on the Hub, too.

    Raises ModelError for a missing folder, an unknown id or revision, no network, another kind of
    model, or an adapter that does not fit it.
    """
    place = hub.find(_FLAG, model_path, _SMALL_FILES, revision)
    _refuse_adapter_alone(place.folder, model_path)
    config = read_config(place.folder)
    opened = tuple(open_adapter(name, config) for name in adapters)
    _refuse_adapter_beside(place.folder, model_path, adapters, opened)
    return Checkpoint(place.folder, place.hub_id, config, opened)


def _refuse_adapter_alone(folder: Path, model_path: str) -> None:
    if (folder / ADAPTER_CONFIG).exists() and not (folder / _CONFIG).exists():
        base = read_settings(folder).get("base_model_name_or_path") or "THE_MODEL_IT_WAS_TRAINED_ON"
        raise ModelError(f"{folder}: is an adapter without a model; give {_FLAG} {base} --adapter {model_path}")


def _refuse_adapter_beside(folder: Path, model_path: str, names: Sequence[str], opened: Sequence[Adapter]) -> None:
    """Refuse an adapter in the folder: transformers would apply it, and give other activations."""
    given = model_path in names or any(adapter.folder.resolve() == folder.resolve() for adapter in opened)
    if (folder / ADAPTER_CONFIG).exists() and not given:
        raise ModelError(
            f"{folder}: has an adapter beside the model ({ADAPTER_CONFIG}); give --adapter {model_path} too, which"
            " applies it, or move it away to read the model without it"
        )


def _stored_name(name: str, stored: Container[str], *, tied: bool) -> str | None:
    """The name of a tensor in a checkpoint with these names; None if it is not there.

    Checkpoints of the bare decoder omit `model.`, those of models with images add a part before it,
    and tied embeddings may be stored as the head alone.
    """
    inner = name.removeprefix("model.")
    names = [f"{prefix}{inner}" for prefix in PREFIXES]
    if name == _EMBEDDING and tied:
        names += _HEADS
    return next((candidate for candidate in names if candidate in stored), None)


def _refuse_missing(place: Path, names: list[str]) -> None:
    if names:
        raise ModelError(f"{place}: lacks {len(names)} tensors: {', '.join(names[:5])}")
