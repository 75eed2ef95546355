"""The labels of a prompt's tokens: who says each, and in ARC prompts which cell it is."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from layertap.core.cells import read_grids
from layertap.core.columns import NO_LABELS, ROLES, SIDES, TEST
from layertap.core.records import Grid

_ROLE_NAMES = np.array(ROLES)


@dataclass(frozen=True, eq=False)
class Labels:
    """The label columns of a sample, one value per token (docs/formats.md)."""

    role: np.ndarray
    """uint8: an index into `core.columns.ROLES`; `role_names` gives the names."""
    example: np.ndarray
    """int16: the train pair, in the prompt's order, from 0; -2 the test; -1 no grid."""
    side: np.ndarray
    """uint8: 0 no grid, 1 an input, 2 an output."""
    row: np.ndarray
    """int8: the row of its first cell, from 0; -1 no cell."""
    col: np.ndarray
    """int8: the column of that cell."""
    colours: np.ndarray
    """int64: the colours of its cells, a decimal digit each, the first cell's the lowest; -1 no
    cell."""
    cells: np.ndarray
    """uint8: how many cells the token covers, in whole or in part."""

    @property
    def role_names(self) -> np.ndarray:
        """Who says each token: template, text, system, user, assistant or tool."""
        return _ROLE_NAMES[self.role]

    def grids(self) -> Mapping[tuple[int | str, str], Grid | None]:
        """Return the grids of an ARC prompt as shown, by `(0, "input")`, ..., `("test", "input")`.

        A grid is None if some of its cells are missing.
        """
        found = read_grids({name: getattr(self, name) for name in NO_LABELS})
        return {("test" if pair == TEST else pair, SIDES[side]): grid for (pair, side), grid in found.items()}
