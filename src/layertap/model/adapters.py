"""LoRA adapters as PEFT writes them. They are merged into the matrices they change, at reading
time.

An adapter has two thin matrices, A and B, for each matrix W that it changes: W becomes W + s B A.
The scale s is alpha / r, or alpha / sqrt(r) with rsLoRA; both may differ between matrices. With
DoRA the adapter also has a magnitude: the length that each row of the result then gets. The tensors
in the file decide what is applied; `target_modules` only says how they were chosen.
`fan_in_fan_out` is about layers that no family here has, so it is ignored, as in PEFT.

A changed tensor is read like a stored one (`Readable`), so `weights.py` knows nothing of adapters,
and each device still reads only its own part. The sum is computed in float32 and rounded once, to
the compute dtype. DoRA needs the length of whole rows; they are read a second time, in blocks.

Several adapters are applied in order, each to the result of those before, as if each had been
merged before the next was trained. Without DoRA this is the sum of all, in any order.

Anything in an adapter that this module does not apply is refused by name before a weight is read.
Only what comes after the last layer (head, final norm, a classifier) is allowed: no activation
depends on it. Kinds of LoRA that change the model itself when training begins (PiSSA and similar)
are refused too, until PEFT has converted them.
"""

import hashlib
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from layertap.errors import ModelError
from layertap.model import hub
from layertap.model.config import DecoderConfig
from layertap.model.layout import PREFIXES, matrix_shapes
from layertap.model.tensors import READABLE, Readable, Tensor, open_safetensors

ADAPTER_CONFIG = "adapter_config.json"
"""A folder with this file is an adapter."""

_FLAG = "--adapter"
_TENSORS = "adapter_model.safetensors"
_SHOWN = 5  # tensors that one message names
_BLOCK = 1024  # rows whose lengths are computed at once

_INSIDE = r"(?:base_model\.model\.)?"
_PREFIX = "(?:" + "|".join(re.escape(prefix) for prefix in PREFIXES) + ")"
_CHANGES = re.compile(
    rf"{_INSIDE}(?P<module>{_PREFIX}(?P<inner>layers\.\d+\.[\w.]+?))"
    r"\.(?P<part>lora_A|lora_B|lora_magnitude_vector)(?:\.weight)?"
)
_BEHIND = re.compile(rf"{_INSIDE}{_PREFIX}(?:lm_head|norm|score|classifier)\..+")

_CHANGE_MORE = (
    "layer_replication",
    "trainable_token_indices",
    "target_parameters",
    "alora_invocation_tokens",
    "ensure_weight_tying",
)
_KNOWN = ("use_rslora", "use_dora")
_HARMLESS = ("megatron_config", "loftq_config", "eva_config", "corda_config", "lora_ga_config", "runtime_config")
_CHANGE_THE_MODEL = ("pissa", "olora", "corda", "loftq", "lora_ga")

_WAY_OUT = "merge it into the model with peft's `merge_and_unload`, and give that"


@dataclass(frozen=True)
class Update:
    """How an adapter changes one matrix: the names of its tensors, and the scale."""

    low: str
    """A, [rank, inputs]."""
    high: str
    """B, [outputs, rank]."""
    magnitude: str | None
    """The lengths of the rows, with DoRA."""
    rank: float
    scale: float

    @property
    def tensors(self) -> tuple[str, ...]:
        """The names of its tensors in the file."""
        return (self.low, self.high, *([self.magnitude] if self.magnitude else []))


@dataclass(frozen=True)
class Adapter:
    """An adapter that fits its model; its matrices are not read yet."""

    folder: Path
    updates: Mapping[str, Update]
    """By the name of the tensor that changes."""

    def identity(self, names: Iterable[str]) -> str:
        """A sha256 of the changes to the named tensors."""
        digest = hashlib.sha256()
        with self.open_tensors(names) as tensors:
            for name in sorted(self.updates.keys() & set(names)):
                update = self.updates[name]
                digest.update(f"{name} {update.scale!r}".encode())
                for tensor in (tensors[part] for part in update.tensors):
                    digest.update(f"{tensor.dtype} {tensor.shape}".encode() + tensor.read(slice(None)).tobytes())
        return digest.hexdigest()

    @contextmanager
    def open_tensors(self, names: Iterable[str]) -> Iterator[dict[str, Tensor]]:
        """The adapter's tensors that change the named tensors of the model."""
        path = self.folder / _TENSORS
        wanted = [part for name in names if name in self.updates for part in self.updates[name].tensors]
        with open_safetensors(path) as file:
            yield {part: Tensor(part, path, file.get_slice(part)) for part in wanted}


@dataclass(frozen=True)
class Merged:
    """A matrix as an adapter changes it, in float32."""

    base: Readable
    low: Tensor
    high: Tensor
    magnitude: Tensor | None
    scale: float

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the matrix that is changed."""
        return self.base.shape

    def read(self, *index: slice) -> np.ndarray:
        """The part that these rows and columns select."""
        rows, inputs = index
        values = self._sum(rows, inputs)
        if self.magnitude is not None:
            values *= self._stretch[rows, None]
        return values

    def _sum(self, rows: slice, inputs: slice) -> np.ndarray:
        high = self.high.read(rows, slice(None)).astype(np.float32)
        values = high @ self.low.read(slice(None), inputs).astype(np.float32)
        values *= np.float32(self.scale)
        values += self.base.read(rows, inputs).astype(np.float32)
        return values

    @cached_property
    def _stretch(self) -> np.ndarray:
        """The factor for each row that gives it the length that the adapter says."""
        assert self.magnitude is not None
        outputs = self.shape[0]
        blocks = (slice(first, min(first + _BLOCK, outputs)) for first in range(0, outputs, _BLOCK))
        lengths = np.concatenate([np.linalg.norm(self._sum(rows, slice(None)), axis=1) for rows in blocks])
        return self.magnitude.read(slice(None)).astype(np.float32).reshape(-1) / lengths


@contextmanager
def merged(tensors: Mapping[str, Tensor], adapters: Sequence[Adapter]) -> Iterator[dict[str, Readable]]:
    """The model's tensors with the adapters applied in order."""
    found: dict[str, Readable] = {**tensors}
    with ExitStack() as stack:
        for adapter in adapters:
            parts = stack.enter_context(adapter.open_tensors(tensors))
            for name in adapter.updates.keys() & found.keys():
                update = adapter.updates[name]
                magnitude = parts[update.magnitude] if update.magnitude else None
                found[name] = Merged(found[name], parts[update.low], parts[update.high], magnitude, update.scale)
        yield found


def open_adapter(name: str, model: DecoderConfig) -> Adapter:
    """Open the adapter in a folder, or fetch one from the Hub.

    Raises ModelError if there is none, if it does not fit the model, or if a part cannot be
    applied.
    """
    folder = hub.find(_FLAG, name, [ADAPTER_CONFIG, _TENSORS]).folder
    settings = read_settings(folder)
    if not (folder / _TENSORS).exists():
        raise ModelError(
            f"{folder}: has no {_TENSORS}; a pickled adapter_model.bin is not read: load it with peft and save it"
            " once more, which writes safetensors"
        )
    _refuse_other_kinds(folder, settings)
    with open_safetensors(folder / _TENSORS) as file:
        tensors = {key: Tensor(key, folder / _TENSORS, file.get_slice(key)) for key in file.keys()}  # noqa: SIM118
        updates = _updates(folder, settings, [*tensors])
        wrong = [why for changed, update in updates.items() for why in _misfits(changed, update, tensors, model)]
    if wrong:
        shown = wrong[:_SHOWN] + [f"and {len(wrong) - _SHOWN} more"] * (len(wrong) > _SHOWN)
        raise ModelError(f"{folder}: this adapter belongs to another model:\n  " + "\n  ".join(shown))
    return Adapter(folder, updates)


def read_settings(folder: Path) -> dict[str, Any]:
    """The adapter's config; raises ModelError if there is none."""
    path = folder / ADAPTER_CONFIG
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ModelError(f"{path}: no such file; {_FLAG} must be an adapter that PEFT has saved") from error
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: cannot be read as JSON: {error}") from error
    if not isinstance(settings, dict):
        raise ModelError(f"{path}: holds a {type(settings).__name__}, not an object")
    return settings


def _refuse_other_kinds(folder: Path, settings: Mapping[str, Any]) -> None:
    kind = settings.get("peft_type")
    if kind != "LORA":
        raise ModelError(f"{folder}: this adapter is of type {kind}; Layertap applies LORA (with rsLoRA, DoRA)")
    start = settings.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(_CHANGE_THE_MODEL):
        raise ModelError(
            f"{folder}: init_lora_weights is {start!r}, which changed the model's own weights before training; convert"
            " the adapter with save_pretrained(..., path_initial_model_for_weight_conversion=...) of peft"
        )
    for key, value in settings.items():
        is_variant = (key.startswith("use_") and key not in _KNOWN) or (
            key.endswith("_config") and key not in _HARMLESS
        )
        if value and (is_variant or key in _CHANGE_MORE):
            raise ModelError(f"{folder}: this adapter has {key}, which Layertap does not apply; {_WAY_OUT}")


def _updates(folder: Path, settings: Mapping[str, Any], stored: Sequence[str]) -> dict[str, Update]:
    """Updates by the model's tensor; raises ModelError for adapter tensors with no use."""
    parts: dict[str, dict[str, str]] = {}
    changed, unknown = {}, []
    for name in stored:
        if match := _CHANGES.fullmatch(name):
            parts.setdefault(match["module"], {})[match["part"]] = name
            changed[match["module"]] = f"model.{match['inner']}.weight"
        elif not _BEHIND.fullmatch(name):
            unknown.append(name)
    dora = bool(settings.get("use_dora"))
    expected = {"lora_A", "lora_B"} | ({"lora_magnitude_vector"} if dora else set())
    incomplete = sorted(module for module, found in parts.items() if found.keys() != expected)
    if unknown or incomplete:
        names = [*sorted(unknown), *(f"{', '.join(parts[module].values())} alone" for module in incomplete)]
        more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        raise ModelError(
            f"{folder}: this adapter has what Layertap does not apply: {', '.join(names[:_SHOWN])}{more}; {_WAY_OUT}"
        )
    if not parts:
        raise ModelError(f"{folder}: this adapter changes no layer")
    return {changed[module]: _update(folder, settings, module, found) for module, found in parts.items()}


def _update(folder: Path, settings: Mapping[str, Any], module: str, found: Mapping[str, str]) -> Update:
    rank = _of_module(folder, settings, module, "rank_pattern", "r")
    alpha = _of_module(folder, settings, module, "alpha_pattern", "lora_alpha")
    scale = alpha / (math.sqrt(rank) if settings.get("use_rslora") else rank)
    return Update(found["lora_A"], found["lora_B"], found.get("lora_magnitude_vector"), rank, scale)


def _of_module(folder: Path, settings: Mapping[str, Any], module: str, patterns: str, key: str) -> float:
    """The number of the first pattern that the module's name ends with, as in PEFT; else the number
    for all modules. If the config has neither, it is 8, as in PEFT.
    """
    given = settings.get(patterns) or {}
    try:
        value = next((given[it] for it in given if re.match(rf"(.*\.)?({it})$", module)), settings.get(key, 8))
    except (TypeError, re.error) as error:
        raise ModelError(f"{folder / ADAPTER_CONFIG}: {patterns} has no patterns with numbers: {given!r}") from error
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ModelError(f"{folder / ADAPTER_CONFIG}: {key} of {module} is {value!r}, not a positive number")
    return float(value)


def _misfits(changed: str, update: Update, tensors: Mapping[str, Tensor], model: DecoderConfig) -> Iterator[str]:
    """The reasons why an update cannot be applied to the tensor."""
    _, _, number, inner = changed.split(".", 3)
    shape = matrix_shapes(model).get(inner)
    if shape is None:
        yield f"{changed} is not in a {model.model_type}"
        return
    if int(number) >= model.num_hidden_layers:
        yield f"{changed} is not there: the model has layers 0 to {model.num_hidden_layers - 1}"
    outputs, inputs = shape
    high, low = tensors[update.high], tensors[update.low]
    rank = low.shape[0] if low.shape else 0
    if (low.shape, high.shape) != ((rank, inputs), (outputs, rank)) or not rank:
        yield f"{changed} has shape {shape}, and the adapter has {list(high.shape)} times {list(low.shape)} for it"
    elif rank != update.rank:
        yield f"{changed} has rank {update.rank:g}, and the adapter's tensors have {rank}"
    elif update.magnitude is not None and math.prod(tensors[update.magnitude].shape) != outputs:
        yield f"{changed} has {outputs} rows, and the adapter {math.prod(tensors[update.magnitude].shape)} lengths"
    unreadable = {tensors[part].dtype for part in update.tensors} - {*READABLE}
    if unreadable:
        yield f"{update.low} is stored as {', '.join(unreadable)}, not as one of {', '.join(READABLE)}"
