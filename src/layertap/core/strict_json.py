"""JSON as the standard has it: the one way in which output is written.

Python's own writer makes `NaN` and `Infinity` of such numbers, which is no JSON: many readers
refuse the whole file. Here they become null, as they do in JavaScript.
"""

import json
import math
from collections.abc import Mapping
from typing import Any


def dump_json(value: Any, **options: Any) -> str:  # noqa: ANN401 - JSON
    """`value` as `json.dumps` writes it with these options, numbers that are none as null."""
    try:
        return json.dumps(value, allow_nan=False, **options)
    except ValueError:
        return json.dumps(_without_nan(value), allow_nan=False, **options)


def _without_nan(value: Any) -> Any:  # noqa: ANN401 - JSON
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {name: _without_nan(own) for name, own in value.items()}
    return [_without_nan(own) for own in value] if isinstance(value, list | tuple) else value
