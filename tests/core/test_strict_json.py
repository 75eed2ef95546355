"""Output that should be JSON is JSON, whatever numbers are in it."""

import json
import math
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from layertap.core.strict_json import dump_json

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


def refuse(name: str) -> None:
    raise AssertionError(f"{name} is no JSON")


def finite(value: Any) -> Any:
    """Replace by null the numbers in `value` that are not finite."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: finite(own) for name, own in value.items()}
    return [finite(own) for own in value] if isinstance(value, list) else value


@given(VALUES)
def test_numbers_that_are_none_become_null_and_all_else_stays(value: Any) -> None:
    for text in (dump_json(value), dump_json(value, indent=2)):
        assert json.loads(text, parse_constant=refuse) == finite(value)


@given(VALUES)
def test_what_is_json_already_is_written_as_ever(value: Any) -> None:
    assert dump_json(finite(value), sort_keys=True) == json.dumps(finite(value), sort_keys=True)


def test_tuples_and_infinity_within_them() -> None:
    assert dump_json({"a": (1, math.inf), "b": math.nan}) == '{"a": [1, null], "b": null}'
