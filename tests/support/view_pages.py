"""A page of `layertap view`, unpacked as its own program does it."""

import base64
import gzip
import json
import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from layertap.cli import main
from layertap.view.html.codes import decode


def view(*arguments: str | Path) -> int:
    """Run `layertap view`, and return its exit status."""
    return main(["view", *map(str, arguments)])


@dataclass(frozen=True, eq=False)
class Listed:
    """The features of an autoencoder that a page lists."""

    header: dict[str, Any]
    counts: np.ndarray
    """[features, 1 + bins + values]"""
    numbers: np.ndarray
    """int32 [features, 2]"""
    sizes: np.ndarray
    """[features, 2]: mean where it fires, and largest"""


class Page:
    """A page as its program unpacks it."""

    def __init__(self, path: Path) -> None:
        self.text = path.read_text(encoding="utf-8")
        self.run = self._json("run")
        self.samples = self._json("samples")
        self.features = self._json("features") if 'id="features"' in self.text else None

    def _json(self, name: str) -> Any:
        found = re.search(rf'<script type="application/json" id="{name}">(.*?)</script>', self.text, re.DOTALL)
        assert found is not None
        return json.loads(found[1])

    def unpack(self, number: int) -> tuple[dict[str, Any], np.ndarray]:
        """Return the header of a sample, and its figures [names, taps, tokens].

        A feature is known only at its own tap.
        """
        header, rest = self._packed(f"sample-{number}")
        rows = decode(np.frombuffer(rest, "<u2").reshape(-1, header["tokens"]))
        count, taps = len(self.run["features"]), len(self.run["taps"])
        everywhere = rows[: len(rows) - count].reshape(len(self.run["names"]) - count, taps, header["tokens"])
        features = np.full((count, taps, header["tokens"]), np.nan)
        features[np.arange(count), header["feature_taps"]] = rows[len(rows) - count :]
        return header, np.concatenate([everywhere, features])

    def top(self, number: int) -> tuple[dict[str, Any], np.ndarray]:
        """The header of a sample in which features are largest, and heats [features, tokens]."""
        header, rest = self._packed(f"top-{number}")
        return header, decode(np.frombuffer(rest, "<u2").reshape(-1, header["tokens"]))

    def listed(self, number: int) -> Listed:
        """The features of an autoencoder."""
        header, rest = self._packed(f"features-{number}")
        bins, values = len(header["edges"]) - 1, sum(len(group["values"]) for group in header["groups"])
        count, kind = header["listed"], np.dtype("<f8" if header["wide"] else "<u4")
        ends = np.cumsum([count * (1 + bins + values) * kind.itemsize, count * 8, count * 4])
        assert ends[-1] == len(rest)
        counts, numbers, codes = (rest[begin:end] for begin, end in zip([0, *ends], ends, strict=False))
        return Listed(
            header,
            np.frombuffer(counts, kind).reshape(count, -1),
            np.frombuffer(numbers, "<i4").reshape(count, 2),
            decode(np.frombuffer(codes, "<u2").reshape(count, 2)),
        )

    def _packed(self, name: str) -> tuple[dict[str, Any], bytes]:
        found = re.search(rf'id="{name}">([^<]*)<', self.text)
        assert found is not None, name
        content = gzip.decompress(base64.b64decode(found[1]))
        (length,) = struct.unpack("<I", content[:4])
        return json.loads(content[4 : 4 + length]), content[4 + length :]
