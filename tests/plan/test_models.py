"""Which model a name means."""

from pathlib import Path

import pytest

from layertap.model.config import published_config, read_config
from layertap.plan.models import model_config


@pytest.mark.parametrize(
    "name", ["7b", "7B", "Qwen/Qwen2.5-7B", "Qwen2.5-7B-Instruct", "Qwen/Qwen2.5-Coder-7B", "Qwen2.5-Math-7B"]
)
def test_published_sizes_need_no_file(name: str) -> None:
    assert model_config(name) == published_config("7b")


def test_a_folder_is_read(tiny_model: Path) -> None:
    assert model_config(str(tiny_model)) == read_config(tiny_model)
