"""Checks that dataclasses of settings run in `__post_init__`, to refuse contradictions."""

from layertap.errors import UsageError


def require(condition: bool, message: str) -> None:
    """Raise UsageError with `message` unless the condition holds."""
    if not condition:
        raise UsageError(message)


def require_counts(settings: object, *names: str) -> None:
    """Raise UsageError if one of these settings is below 1; None means that it was not given."""
    for name in names:
        value = getattr(settings, name)
        require(value is None or value >= 1, f"--{name} must be at least 1, not {value}")
