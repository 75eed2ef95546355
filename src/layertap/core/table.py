"""Rows of words as a table for a terminal."""

from collections.abc import Collection, Sequence


def table(rows: Sequence[Sequence[str]], left: Collection[int] = ()) -> str:
    """Return one line per row; columns are two spaces apart and flush right, except those in
    `left`.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(_cells(row, widths, left)).rstrip() for row in rows)


def _cells(row: Sequence[str], widths: Sequence[int], left: Collection[int]) -> list[str]:
    cells = enumerate(zip(row, widths, strict=True))
    return [cell.ljust(width) if number in left else cell.rjust(width) for number, (cell, width) in cells]
