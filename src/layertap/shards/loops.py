"""Whether numba's loops encode a shard: those of compiled.py and compiled_rounding.py.

They do if numba is installed and the shard is large. Importing numba takes most of a second, and
saves half a nanosecond a value. So a small run would wait for numba longer than it encodes.

The shard alone decides, not what the process did before. After a kill, the next process must write
the same bytes, and the two ways may differ in the last digit of a norm.
"""

from functools import cache

_LARGE = 1 << 24
"""How many values make a shard large."""


def loops_pay(values: int) -> bool:
    """Return whether the loops should encode a shard of so many values."""
    return values >= _LARGE and has_loops()


@cache
def has_loops() -> bool:
    """Return whether the loops can run here. The first call compiles or loads them."""
    try:
        import layertap.shards.compiled_rounding  # noqa: F401
    except (ImportError, OSError):  # no numba, one that does not fit numpy, or no room for what it keeps
        return False
    return True
