"""Labels as a reader gets them: of a sample, and as what batches are chosen by."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import outputs
import pytest

from layertap import ActivationDataset
from layertap.core.columns import COLUMNS, NO_LABELS, NONE, ROLES, TEST
from layertap.core.sample import Sample
from layertap.errors import UsageError
from layertap.objects import open_store
from layertap.shards.writer import ShardWriter

GRID = ((1, 2, 3), (4, 5, 6))
ANSWER = ((7,), (8,))


def labelled(index: int) -> Sample:
    """A prompt of template, a grid of two cells a token, an answer, and the user's last words."""
    tokens = 2 + 3 + 2 + index
    columns: dict[str, np.ndarray] = {name: np.full(tokens, value, COLUMNS[name]) for name, value in NO_LABELS.items()}
    columns["role"][:] = ROLES.index("template")
    for name, values in {"example": 0, "side": 1, "row": (0, 0, 1), "col": (0, 2, 1), "colours": (21, 43, 65)}.items():
        columns[name][2:5] = values
    for name, values in {"example": TEST, "side": 2, "row": (0, 1), "col": 0, "colours": (7, 8)}.items():
        columns[name][5:7] = values
    columns["cells"][2:5], columns["cells"][5:7] = 2, 1
    columns["role"][2:5], columns["role"][5:7] = ROLES.index("user"), ROLES.index("assistant")
    columns["role"][7:] = ROLES.index("user")
    plain = outputs.sample(index, tokens)
    return replace(plain, columns={**plain.columns, **columns})


@pytest.fixture
def output(tmp_path: Path, form: str) -> Path:
    """Three shards of two samples with labels."""
    samples = [labelled(index) for index in range(6)]
    contents = [samples[begin : begin + 2] for begin in (0, 2, 4)]
    outputs.write(tmp_path / "out", contents, outputs.shard_format(name=form))
    return tmp_path / "out"


@pytest.fixture
def unlabelled(tmp_path: Path) -> Path:
    """An output of a version that had no labels."""
    form, old = outputs.shard_format(), dict.fromkeys(("token_ids", "positions"), "int32") | {"flags": "uint8"}
    manifest = outputs.manifest(form, columns=old)
    ShardWriter(open_store(str(tmp_path / "old")), manifest, form, lambda _: None).commit(
        outputs.three_shards()[0], {"record": 1}, complete=True
    )
    return tmp_path / "old"


def test_a_sample_tells_the_labels_of_its_tokens(output: Path) -> None:
    for sample in ActivationDataset(output):
        expected = labelled(sample.sample_idx).columns
        for name in NO_LABELS:
            assert np.array_equal(getattr(sample.labels, name), expected[name])
        names = ["template"] * 2 + ["user"] * 3 + ["assistant"] * 2 + ["user"] * sample.sample_idx
        assert sample.labels.role_names.tolist() == names
        assert sample.labels.grids() == {(0, "input"): GRID, ("test", "output"): ANSWER}


WANTED: dict[str, Any] = {
    "cells": lambda columns: columns["cells"] > 0,
    "answer": lambda columns: columns["role"] == ROLES.index("assistant"),
    "user": lambda columns: columns["role"] == ROLES.index("user"),
    "tool": lambda columns: columns["role"] == ROLES.index("tool"),
}


def places(batches: Any) -> Iterator[tuple[int, int]]:
    for batch in batches:
        yield from zip(batch.samples.tolist(), batch.positions.tolist(), strict=True)


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize(
    ("include", "role"),
    [({"cells"}, ()), ({"answer"}, ()), ({"answer", "user"}, ()), ({"cells"}, "user"), ((), {"user"}), ({"tool"}, ())],
)
@pytest.mark.parametrize("world_size", [1, 3])
def test_only_tokens_that_are_included_come_and_each_once(
    output: Path, include: Any, role: Any, shuffle: bool, world_size: int
) -> None:
    dataset = ActivationDataset(output)
    expected = []
    for number, sample in enumerate(dataset):
        columns = {name: sample.column(name) for name in NO_LABELS}
        kept = np.logical_or.reduce([WANTED[name](columns) for name in include]) if include else True
        kept &= WANTED[role if isinstance(role, str) else next(iter(role))](columns) if role else True
        kept &= sample.positions > 0
        expected += [(number, int(position)) for position in sample.positions[kept]]
    found = []
    for rank in range(world_size):
        batches = dataset.batches(
            3, include=include, role=role, exclude={"first"}, shuffle=shuffle, rank=rank, world_size=world_size
        )
        found += places(batches)
    assert sorted(found) == expected
    assert len(found) == len(set(found))


def test_a_state_tells_what_was_included_only_where_something_was(output: Path) -> None:
    dataset = ActivationDataset(output)
    plain, chosen = dataset.batches(3), dataset.batches(3, include={"cells"}, role="user")
    assert not {"include", "role"} & plain.state_dict()["order"].keys()
    assert chosen.state_dict()["order"]["include"] == ["cells"]
    assert chosen.state_dict()["order"]["role"] == ["user"]
    with pytest.raises(UsageError, match="include: None there"):
        chosen.load_state_dict(plain.state_dict())
    with pytest.raises(UsageError, match=r"include: \['cells'\] there, None now"):
        plain.load_state_dict(chosen.state_dict())


@pytest.mark.parametrize("asked", [{"include": {"cell"}}, {"role": "nobody"}, {"include": {"role:user"}}])
def test_unknown_names_are_refused_with_those_there_are(output: Path, asked: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=r"is unknown; give .*template, text, system, user, assistant, tool"):
        ActivationDataset(output).batches(3, **asked)


def test_an_output_without_labels_stays_readable_and_says_so(unlabelled: Path) -> None:
    dataset = ActivationDataset(unlabelled)
    assert sum(map(len, dataset.batches(3))) == dataset.tokens
    with pytest.raises(UsageError, match=r"has no column role; .*extract it again"):
        _ = dataset[0].labels
    for asked in ({"include": {"cells"}}, {"role": "user"}, {"columns": ("token_ids", "colours")}):
        with pytest.raises(UsageError, match="an older version extracted it"):
            dataset.batches(3, **asked)  # type: ignore[arg-type]


def test_labels_come_with_batches_as_columns(output: Path) -> None:
    dataset = ActivationDataset(output)
    for batch in dataset.batches(4, columns=("token_ids", *NO_LABELS)):
        for row, (number, position) in enumerate(zip(batch.samples, batch.positions, strict=True)):
            for name in NO_LABELS:
                assert batch.columns[name][row] == dataset[int(number)].column(name)[position]
    assert NONE in batch.columns["row"]
