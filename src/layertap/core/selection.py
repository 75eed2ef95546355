"""Which tokens are meant, in words: what a run keeps, and what batches include.

    all          every token
    cells        tokens with characters of a grid's cells
    answer       what the assistant says: role:assistant
    role:NAME    what a role says, by its name in ROLE_NAMES
    no_prefix    all but the tokens that every prompt of the run begins with (pipeline/kept.py)

Several mean the tokens of each of them. `core.columns.selected` finds them; there is no numpy here,
because flags are read without it.
"""

from collections.abc import Sequence

from layertap.errors import UsageError

ROLE_NAMES = ("template", "text", "system", "user", "assistant", "tool")
"""What a token can be part of, by its number: words of a template, plain text, or what a role
says."""
ALL, NO_PREFIX, CELLS, ANSWER = "all", "no_prefix", "cells", "answer"
NAMES = (ALL, CELLS, ANSWER, NO_PREFIX, *(f"role:{name}" for name in ROLE_NAMES))


def parse_selection(words: Sequence[str]) -> tuple[str, ...]:
    """The names in `cells answer` or `cells,answer`, sorted; `all` alone where it is among them.

    Raises UsageError for an unknown name, and for none at all.
    """
    names = {name for word in words for name in word.split(",") if name}
    unknown = sorted(names - set(NAMES))
    if unknown or not names:
        told = ", ".join(map(repr, unknown)) or "nothing"
        raise UsageError(f"{told} does not say which tokens; give one or several of {', '.join(NAMES)}")
    return (ALL,) if ALL in names else tuple(sorted(names))
