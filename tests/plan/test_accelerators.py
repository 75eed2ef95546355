"""Which accelerators and models the names stand for."""

from pathlib import Path

import pytest

from layertap.errors import UsageError
from layertap.model.config import published_config
from layertap.model.families import read_config
from layertap.plan.accelerators import parse_accelerator
from layertap.plan.planned import model_config


@pytest.mark.parametrize(
    ("name", "platform", "chips", "hosts", "topology"),
    [
        ("v5litepod-64", "tpu", 64, 16, "v5e:8x8"),
        ("v5litepod-8", "tpu", 8, 1, "v5e:2x4"),
        ("v6e-8", "tpu", 8, 1, "v6e:2x4"),
        ("v4-8", "tpu", 4, 1, "v4:2x2x1"),
        ("v4-32", "tpu", 16, 4, "v4:2x2x4"),
        ("v4-128", "tpu", 64, 16, "v4:4x4x4"),
        ("v5p-8", "tpu", 4, 1, "v5p:2x2x1"),
        ("v4:4x4x4", "tpu", 64, 16, "v4:4x4x4"),
        ("v5e:2x2", "tpu", 4, 1, "v5e:2x2"),
        ("h200x1", "gpu", 1, 1, None),
        ("h100x8", "gpu", 8, 1, None),
        ("a100x1", "gpu", 1, 1, None),
    ],
)
def test_names(name: str, platform: str, chips: int, hosts: int, topology: str | None) -> None:
    found = parse_accelerator(name)
    assert (found.platform, found.chips, found.hosts, found.topology) == (platform, chips, hosts, topology)
    assert found.memory_bytes > 1e9


TPUS = ["v5litepod-63", "tpu", "v5e-8", "v4-7", "v4-1", "v5e:8", "v4:2x2", "v5litepod-12", "v5e:0x2"]


@pytest.mark.parametrize("name", ["h200", "h200x3", "b200x1", "", *TPUS])
def test_what_is_not_known_is_refused_with_what_is(name: str) -> None:
    with pytest.raises(UsageError, match=r"v4-32, v5litepod-64.*h200x1.*--max_tasks"):
        parse_accelerator(name)


@pytest.mark.parametrize(
    "name", ["7b", "7B", "Qwen/Qwen2.5-7B", "Qwen2.5-7B-Instruct", "Qwen/Qwen2.5-Coder-7B", "Qwen2.5-Math-7B"]
)
def test_published_sizes_need_no_file(name: str) -> None:
    assert model_config(name) == published_config("7b")


def test_a_folder_is_read(tiny_model: Path) -> None:
    assert model_config(str(tiny_model)) == read_config(tiny_model)
