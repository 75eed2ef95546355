"""What can be rented."""

import pytest

from layertap.errors import UsageError
from layertap.plan.accelerators import parse_accelerator


@pytest.mark.parametrize(
    ("name", "platform", "chips", "hosts"),
    [
        ("v5litepod-64", "tpu", 64, 16),
        ("v5litepod-8", "tpu", 8, 1),
        ("v4-32", "tpu", 16, 4),
        ("v6e-8", "tpu", 8, 1),
        ("h200x1", "gpu", 1, 1),
        ("h100x8", "gpu", 8, 1),
        ("a100x1", "gpu", 1, 1),
        ("cpu", "cpu", 1, 1),
    ],
)
def test_names(name: str, platform: str, chips: int, hosts: int) -> None:
    accelerator = parse_accelerator(name)
    assert (accelerator.platform, accelerator.chips, accelerator.hosts) == (platform, chips, hosts)
    assert accelerator.memory_bytes > 1e9


@pytest.mark.parametrize("name", ["h200", "h200x3", "b200x1", "v5litepod-63", "tpu", ""])
def test_what_is_not_known_is_refused_with_what_is(name: str) -> None:
    with pytest.raises(UsageError, match=r"v4-32, v5litepod-64.*h200x1.*cpu"):
        parse_accelerator(name)
