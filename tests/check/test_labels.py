"""`verify` finds labels that are impossible."""

import outputs
import pytest

from layertap.core.columns import COLUMNS

FIRST = "shard_0001.pkl.gz"
CELL = {"role": 3, "example": 0, "side": 1, "row": 2, "col": 3, "colours": 5, "cells": 1}


@pytest.fixture
def labelled(tmp_path):
    """An output whose second sample has a cell as its second token, and two cells as its third."""
    contents = outputs.three_shards()
    columns = contents[0][1].columns
    for name, value in CELL.items():
        columns[name][1:3] = value
    columns["cells"][2], columns["colours"][2] = 2, 95
    outputs.write(tmp_path, contents, outputs.shard_format())
    return tmp_path


def test_labels_that_can_be_are_sound(labelled):
    assert outputs.findings(labelled) == []


@pytest.mark.parametrize(
    ("column", "value", "complaint"),
    [
        ("role", 6, "has no known role"),
        ("side", 3, "has no known side"),
        ("side", 0, "has an example without a side, or a side without an example"),
        ("example", -3, "belongs to no possible example"),
        ("example", -1, "has an example without a side, or a side without an example"),
        ("row", -1, "has cells without a row, or a row without cells"),
        ("row", 30, "has an impossible row"),
        ("col", -2, "has an impossible col"),
        ("cells", 0, "has cells without a col, or a col without cells"),
        ("colours", -1, "has cells without colours, or colours without cells"),
        ("colours", 10, "has more colours than cells"),
        ("colours", -7, "has impossible colours"),
    ],
)
def test_labels_that_cannot_be_are_found_with_their_token(labelled, column, value, complaint):
    def edit(shard):
        for entries in shard.values():
            entries[1][column] = entries[1][column].astype(COLUMNS[column])
            entries[1][column][1] = value

    outputs.rewrite(labelled, FIRST, edit)
    found = outputs.findings(labelled)
    assert any(f"sample 1: token 1 {complaint} (role " in finding for finding in found), found
    assert all("layer 0" in finding for finding in found)  # labels are the same at all of them: told once
