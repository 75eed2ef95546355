"""What `layertap compare` says about a dump."""

from collections.abc import Callable

from layertap.compare.command import Comparison

Look = Callable[..., Comparison]
"""Compares a file with these tensors, and the token ids that come first, if any do."""


def verdict(comparison: Comparison, name: str | None = None) -> tuple[bool, str]:
    """Return whether one array, or the only one, has a fault, and the words about it."""
    (one,) = (one for one in comparison.findings if name in (None, one.array.name))
    return one.verdict.fault, one.verdict.words
