"""Whether numba's loops encode a shard: those of compiled.py and compiled_rounding.py.

They do if numba is installed and the shard is large. Importing numba and compiling take two to
four seconds, and save half a nanosecond a value. So a small run would wait for numba longer than it
encodes.

The shard alone decides, not what the process did before. After a kill, the next process must write
the same bytes, and the two ways may differ in the last digit of a norm.
"""

from functools import cache

_LARGE = 1 << 26
"""How many values make a shard large: a fifth of a gigabyte in float32."""


def loops_pay(values: int) -> bool:
    """Return whether the loops should encode a shard of so many values."""
    return values >= _LARGE and has_loops()


@cache
def has_loops() -> bool:
    """Return whether the loops can run here, compiled."""
    try:
        import numba

        import layertap.shards.compiled_rounding  # noqa: F401
    except (ImportError, AttributeError, SystemError, OSError):  # none, or one that does not fit numpy
        return False
    return not getattr(numba.config, "DISABLE_JIT", False)  # a setting of users who debug their own loops
