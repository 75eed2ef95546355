"""Google's names for TPUs."""

import pytest

from layertap.errors import UsageError
from layertap.plan.topologies import parse_topology


@pytest.mark.parametrize(
    ("text", "topology", "chips"),
    [
        ("v5litepod-64", "v5e:8x8", 64),
        ("v5litepod-8", "v5e:2x4", 8),
        ("v6e-8", "v6e:2x4", 8),
        ("v4-8", "v4:2x2x1", 4),
        ("v4-32", "v4:2x2x4", 16),
        ("v4-128", "v4:4x4x4", 64),
        ("v5p-8", "v5p:2x2x1", 4),
        ("v4:4x4x4", "v4:4x4x4", 64),
        ("v5e:2x2", "v5e:2x2", 4),
    ],
)
def test_names(text: str, topology: str, chips: int) -> None:
    parsed = parse_topology(text)
    assert (str(parsed), parsed.chips) == (topology, chips)


@pytest.mark.parametrize("text", ["v5e-8", "v4-7", "v4-1", "v5e:8", "v4:2x2", "v5litepod-12", "h200x1", "", "v5e:0x2"])
def test_what_is_no_tpu_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="v5litepod-64"):
        parse_topology(text)
