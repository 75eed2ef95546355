"""A sample, packed for the page: gzip of a JSON header and the codes of its figures.

    4 bytes     the length of the header, little-endian
    header      JSON, in UTF-8, padded with spaces to an even number of bytes
    codes       uint16, [names, taps, tokens], and after them [features, tokens]: the header's
                `feature_taps` gives the tap of each feature

A browser unpacks it only when the sample is shown (`DecompressionStream`). So a page of fifty
samples opens as fast as a page of one.
"""

import base64
import gzip
import struct
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from layertap.core.cells import read_cells
from layertap.core.columns import NO_LABELS, ROLES, SIDES, TEST
from layertap.core.strict_json import dump_json
from layertap.core.taps import Tap
from layertap.errors import UsageError
from layertap.reader.sample import Sample
from layertap.view.html.codes import encode
from layertap.view.html.figures import Figures

_MOST_CHARACTERS = 200
"""The longest name of a task on the page."""


def pack_sample(sample: Sample, figures: Figures, taps: Sequence[Tap], begin: int = 0) -> str:
    """Pack the sample in base64, from token `begin` on, with the tokens that have figures."""
    header = dump_json(_header(sample, taps, slice(begin, begin + figures.tokens), figures.feature_taps)).encode()
    header += b" " * (len(header) % 2)
    codes = b"".join(encode(own).astype("<u2").tobytes() for own in (figures.values, figures.features))
    return base64.b64encode(gzip.compress(struct.pack("<I", len(header)) + header + codes, mtime=0)).decode("ascii")


def shorten(text: str) -> str:
    """Shorten a name so that a page can show it."""
    return text if len(text) <= _MOST_CHARACTERS else f"{text[:_MOST_CHARACTERS]}…"


def _header(sample: Sample, taps: Sequence[Tap], part: slice, feature_taps: Sequence[int]) -> dict[str, Any]:
    texts, places = _texts(sample, part)
    tokens = part.stop - part.start
    told = {
        "task": shorten(sample.task_id),
        "sample_idx": sample.sample_idx,
        "source": shorten(sample.source),
        "tokens": tokens,
        "begin": part.start,
        "left_out": len(sample) - tokens,
        "ids": sample.token_ids[part].tolist(),
        "positions": sample.positions[part].tolist(),
        "texts": texts,
        "text_of": places,
        "feature_taps": list(feature_taps),
        "flags": [sample.flags(*tap)[part].tolist() for tap in taps],
        "origin": _origin(sample.origin),
    }
    return told | _labels(sample, part)


def _texts(sample: Sample, part: slice) -> tuple[list[str] | None, list[int]]:
    """Return each text once, and which one each token has; None without a tokenizer."""
    try:
        tokens = sample.tokens[part]
    except UsageError:
        return None, []
    texts = list(dict.fromkeys(tokens))
    numbers = {text: number for number, text in enumerate(texts)}
    return texts, [numbers[text] for text in tokens]


def _origin(origin: Mapping[str, Any]) -> dict[str, Any]:
    """Return how the prompt was made: the parts that the page can undo."""
    wanted = ("test_index", "prediction", "augmentation")
    return {name: origin[name] for name in wanted if name in origin}


def _labels(sample: Sample, part: slice) -> dict[str, Any]:
    """Return roles and grids, which are empty where the run stored no labels."""
    try:
        columns = {name: sample.column(name)[part] for name in NO_LABELS}
    except UsageError:
        return {"roles": None, "grids": []}
    roles = [ROLES[number] if number < len(ROLES) else str(number) for number in range(int(columns["role"].max()) + 1)]
    return {"roles": roles, "role_of": columns["role"].tolist(), "grids": _grids(columns)}


def _grids(columns: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
    """Return the grids in the order of the prompt: their colours and the token of each cell."""
    grids = []
    for (example, side), found in read_cells(columns).items():
        pair: int | str = "test" if example == TEST else example
        whole = None if found is None else {"colours": found[0], "tokens": found[1]}
        grids.append({"pair": pair, "side": SIDES[side], "cells": whole})
    return grids
