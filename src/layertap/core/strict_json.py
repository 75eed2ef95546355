"""Write standard JSON. All JSON output of Layertap is written here.  Python's own writer emits
`NaN` and `Infinity`, which are not JSON, so many readers refuse the whole file. Here they become
null, as in JavaScript.
"""

import json
import math
from collections.abc import Mapping
from typing import Any


def dump_json(value: Any, **options: Any) -> str:  # noqa: ANN401 - JSON
    """Write `value` like `json.dumps` with these options, but NaN and infinities as null."""
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
