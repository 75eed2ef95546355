"""A `config.json`, read key by key. Each value is checked when it is asked for by name.

A missing key gets the default of its family's config class in transformers (`with_defaults`). So
does null, except for the keys of `_NULL_SAYS`, where null has a meaning: null as `sliding_window`
means no window, while Mistral's default is a window. All methods raise ModelError naming the file
and the key.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from layertap.errors import ModelError
from layertap.model.config import Rope

# Rope settings are in `rope_parameters` since transformers 5, in `rope_scaling` before, or in both.
ROPE_KEYS = ("rope_parameters", "rope_scaling")
_SCALED = ("linear", "llama3", "yarn", "longrope", "su")
_NULL_SAYS = ("sliding_window", "num_key_value_heads", "attn_logit_softcapping")
_REQUIRED = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size")


@dataclass(frozen=True)
class ConfigFile:
    """The content of a `config.json`."""

    path: Path
    raw: Mapping[str, Any]

    @classmethod
    def read(cls, folder: Path) -> "ConfigFile":
        """The file in a checkpoint folder."""
        path = folder / "config.json"
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise ModelError(f"{path}: no such file; --model_path must be a Hugging Face checkpoint folder") from error
        except (OSError, ValueError) as error:
            raise ModelError(f"{path}: cannot be read as JSON: {error}") from error
        if not isinstance(raw, dict):
            raise ModelError(f"{path}: holds a {type(raw).__name__}, not an object")
        return cls(path, raw)

    def with_defaults(self, **usual: object) -> "ConfigFile":
        """The same file, with these values where it has none."""
        given = {key: value for key, value in self.raw.items() if value is not None or key in _NULL_SAYS}
        return ConfigFile(self.path, usual | given)

    def refuse(self, why: str) -> NoReturn:
        """Raise ModelError for this file."""
        raise ModelError(f"{self.path}: {why}")

    def section(self, key: str) -> "ConfigFile":
        """An object in the file, as a ConfigFile."""
        return ConfigFile(self.path, self.mapping(key))

    def mapping(self, key: str) -> Mapping[str, Any]:
        """An object; empty if there is none."""
        value = self.raw.get(key) or {}
        if not isinstance(value, dict):
            self.refuse(f"{key} is {value!r}, not an object")
        return value

    def items(self, key: str) -> Sequence[Any]:
        """A list; empty if there is none."""
        value = self.raw.get(key) or []
        if not isinstance(value, list):
            self.refuse(f"{key} is {value!r}, not a list")
        return value

    def flag(self, key: str, default: bool) -> bool:
        """A truth value."""
        value = self.raw.get(key)
        return default if value is None else bool(value)

    def number(self, key: str, default: float) -> float:
        """A positive number."""
        value = self.raw.get(key)
        return self._positive(default if value is None else value, key)

    def whole(self, key: str) -> int | None:
        """A positive whole number, or None if there is none."""
        value = self.raw.get(key)
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value <= 0):
            self.refuse(f"{key} is {value!r}, not a positive whole number")
        return value

    def sizes(self) -> dict[str, Any]:
        """The sizes that every family has; sizes that are not given follow from the others."""
        missing = [key for key in _REQUIRED if self.raw.get(key) is None]
        if missing:
            self.refuse(f"lacks {', '.join(missing)}")
        keys = (*_REQUIRED, "num_key_value_heads", "head_dim")
        given = {key: self.raw[key] for key in keys if self.raw.get(key) is not None}
        wrong = [f"{key} ({value!r})" for key, value in given.items() if not isinstance(value, int) or value <= 0]
        if wrong:
            self.refuse(f"{', '.join(wrong)} must be positive whole numbers")
        heads = given["num_attention_heads"]
        derived = {"num_key_value_heads": heads, "head_dim": given["hidden_size"] // heads}
        return {**derived, **given, "rms_norm_eps": self.number("rms_norm_eps", 1e-6), "context": self._context()}

    def layer_types(self) -> list[str]:
        """The kind of attention of each layer, if the file has a list."""
        layers = self.raw.get("num_hidden_layers")
        types = [str(kind) for kind in self.items("layer_types")]
        unknown = set(types) - {"full_attention", "sliding_attention"}
        if unknown or (types and len(types) != layers):
            self.refuse(
                f"layer_types has {len(types)} entries for {layers} layers, or others than full and sliding attention"
            )
        return types

    def rope(self, default_theta: float = 10_000.0) -> Rope:
        """Rotary positions, from the keys and by the rules of transformers."""
        theta = self._rope_theta(default_theta)
        scaled = [settings for key in ROPE_KEYS if (settings := self._scaling(key)) is not None]
        return self._scaled(theta, scaled[0]) if scaled else Rope(theta)

    def _context(self) -> int | None:
        """The longest sequence: as the file says, or less if longer ones need other frequencies."""
        context = self.whole("max_position_embeddings")
        for scaling in filter(None, map(self._scaling, ROPE_KEYS)):
            original = scaling.whole("original_max_position_embeddings")
            original = original or self.whole("original_max_position_embeddings")
            if scaling.kind in ("longrope", "su"):
                return original or context
            if scaling.kind == "yarn" and original is not None:  # Qwen's README does not change the file's number
                return max(context or 0, round(original * scaling.number("factor", 1.0)))
        return context

    @property
    def kind(self) -> object:
        """The kind of scaling, in a section with rope settings."""
        return self.raw.get("rope_type", self.raw.get("type", "default"))

    def _scaling(self, key: str) -> "ConfigFile | None":
        section = self.section(key)
        if section.kind in ("default", "dynamic"):  # dynamic is plain up to max_position_embeddings
            return None
        if section.kind not in _SCALED:
            self.refuse(f"{key} asks for rope scaling of type {section.kind!r}, which is not implemented")
        return section

    def _scaled(self, theta: float, given: "ConfigFile") -> Rope:
        kind, context = given.kind, self.whole("max_position_embeddings") or 0
        original = given.whole("original_max_position_embeddings") or self.whole("original_max_position_embeddings")
        if kind == "linear":
            return Rope(theta, "linear", factor=given.number("factor", 1.0))
        if kind == "llama3":
            return Rope(
                theta,
                "llama3",
                factor=given.number("factor", 8.0),
                original_context=original or context,
                low_frequency_factor=given.number("low_freq_factor", 1.0),
                high_frequency_factor=given.number("high_freq_factor", 4.0),
            )
        if kind == "yarn":
            return self._yarn(theta, given, original or context)
        original = original or context
        factor = given.raw.get("factor") or (context / original)
        attention = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
        return Rope(
            theta,
            "longrope",
            original_context=original,
            attention_factor=given.number("attention_factor", attention),
            factors=tuple(float(value) for value in given.items("short_factor")),
        )

    def _yarn(self, theta: float, given: "ConfigFile", original: int) -> Rope:
        factor = given.number("factor", 1.0)
        scale, all_dims = given.raw.get("mscale"), given.raw.get("mscale_all_dim")

        def growth(by: float) -> float:
            return 0.1 * by * math.log(factor) + 1.0 if factor > 1 else 1.0

        attention = growth(scale) / growth(all_dims) if scale and all_dims else growth(1.0)
        return Rope(
            theta,
            "yarn",
            factor=factor,
            original_context=original,
            beta_fast=given.number("beta_fast", 32.0),
            beta_slow=given.number("beta_slow", 1.0),
            truncate=given.flag("truncate", True),
            attention_factor=given.number("attention_factor", attention),
        )

    def _rope_theta(self, default: float) -> float:
        """The base of the rotary frequencies, from the three places that transformers uses."""
        places = {key: self.mapping(key).get("rope_theta") for key in ROPE_KEYS}
        places["rope_theta"] = self.raw.get("rope_theta")
        given = {key: self._positive(value, f"{key}, rope_theta") for key, value in places.items() if value is not None}
        if len(set(given.values())) > 1:
            self.refuse(f"rope_theta is given twice, and differs: {given}")
        return next(iter(given.values()), default)

    def _positive(self, value: object, key: str) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
            self.refuse(f"{key} is {value!r}, not a positive number")
        return float(value)
