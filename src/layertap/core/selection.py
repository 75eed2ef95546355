"""Names for sets of tokens: what a run keeps, and what batches include.

    all          every token
    cells        tokens that cover cells of a grid
    answer       what the assistant says: role:assistant
    role:NAME    what a role says, by its name in ROLE_NAMES
    no_prefix    all except the tokens that every prompt of the run begins with (pipeline/prefix.py)

Several names select the tokens of each. `core.columns.select` finds the tokens. This module needs
no numpy, because the command line parses flags without it.
"""

from collections.abc import Sequence

from layertap.errors import UsageError

ROLE_NAMES = ("template", "text", "system", "user", "assistant", "tool")
"""What a token can be part of, in the order of the stored numbers: a template, plain text, or what
a role says."""
ALL, NO_PREFIX, CELLS, ANSWER = "all", "no_prefix", "cells", "answer"
NAMES = (ALL, CELLS, ANSWER, NO_PREFIX, *(f"role:{name}" for name in ROLE_NAMES))


def parse_selection(words: Sequence[str]) -> tuple[str, ...]:
    """Parse `cells answer` or `cells,answer` into sorted names; `all` replaces all others.

    Raises UsageError for an unknown name, and for an empty list.
    """
    names = {name for word in words for name in word.split(",") if name}
    unknown = sorted(names - set(NAMES))
    if unknown or not names:
        told = ", ".join(map(repr, unknown)) or "nothing"
        raise UsageError(f"{told} does not name tokens; give one or several of {', '.join(NAMES)}")
    return (ALL,) if ALL in names else tuple(sorted(names))
