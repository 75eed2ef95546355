"""What a token is if it has several cells, if a cell has several tokens, or a grid is not whole."""

import numpy as np

from layertap.core.columns import COLUMNS, NO_LABELS, ROLES, token_columns
from layertap.sae.answers import COLOURS, GROUPS, answer

NAMES = [group.name for group in GROUPS]


def told(columns: dict[str, np.ndarray]) -> list[dict[str, str]]:
    """Return the answers for each token, in words."""
    found = answer(columns)
    return [
        {
            group.name: group.values[number]
            for group, number in zip(GROUPS, found[:, token].tolist(), strict=True)
            if number >= 0
        }
        for token in range(found.shape[1])
    ]


def labels(**values: list[int]) -> dict[str, np.ndarray]:
    """Columns of the user's tokens; columns that are not given are as in plain text."""
    count = len(next(iter(values.values())))
    usual = {name: [value] * count for name, value in NO_LABELS.items()}
    usual["role"] = [ROLES.index("user")] * count
    return {name: np.array(value, COLUMNS[name]) for name, value in (usual | values).items()}


def test_plain_text_answers_its_role_alone() -> None:
    columns = token_columns(np.arange(3, dtype=np.int32), frozenset())
    assert told(columns) == [{"role": "text"}] * 3


def test_a_token_of_several_cells_answers_what_these_share() -> None:
    # 5 5 5
    # 5 5 5      a token each row; the last one is of two colours
    # 5 5 0
    columns = labels(
        example=[0, 0, 0], side=[1, 1, 1], row=[0, 1, 2], col=[0, 0, 0], cells=[3, 3, 3], colours=[555, 555, 55]
    )
    first, second, third = told(columns)
    place = {"role": "user", "grid": "input", "column": "0"}
    assert first == place | {"row": "0", "colour": "grey", "object": "edge of an object"}  # corners and edge
    assert second == place | {"row": "1", "colour": "grey"}  # edge and inside, of the grid and of the object
    assert third == place | {"row": "2"}


def test_a_cell_of_several_tokens_is_told_of_each() -> None:
    columns = labels(
        example=[0, 0, 0], side=[2, 2, 2], row=[0, 0, 0], col=[0, 0, 1], cells=[1, 1, 1], colours=[4, 4, 0]
    )
    yellow, low, black = told(columns)
    assert yellow == low
    assert (yellow["colour"], yellow["edge of grid"], yellow["object"]) == ("yellow", "corner", "edge of an object")
    assert (black["colour"], black["object"]) == (COLOURS[0], "background")


def test_a_grid_that_was_cut_answers_nothing_about_the_whole() -> None:
    columns = labels(example=[0, 0], side=[1, 1], row=[0, 1], col=[0, 1], cells=[1, 1], colours=[1, 2])
    for own in told(columns):
        assert own.keys() == {"role", "grid", "row", "column", "colour"}
