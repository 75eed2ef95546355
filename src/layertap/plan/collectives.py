"""What chips send each other, read from the text of a compiled program (XLA's HLO).

An instruction stands as `name = result operation(operands)`. The compiler may merge several of a kind into one, whose
result is a tuple, and may split one into a start and an end; all of them are found, each shape by itself.
"""

import re
from collections import Counter

_INSTRUCTION = re.compile(
    r"= (\(.*?\)|\S+) (all-gather|all-to-all|all-reduce|reduce-scatter|collective-permute)(-start)?\("
)
_SHAPE = re.compile(r"\w+\[[\d,]*\]")

# The result of their start is the operands, then what the end will give, and perhaps scalars to wait on.
_STARTED_WITH_OPERANDS = frozenset({"all-gather", "collective-permute"})


def collectives(program: str) -> dict[str, int]:
    """What goes over the interconnect: `operation shape` -> how often it stands in the program."""
    found: Counter[str] = Counter()
    for result, operation, start in _INSTRUCTION.findall(program):
        shapes = _SHAPE.findall(result)
        if start and operation in _STARTED_WITH_OPERANDS:
            shapes = [shape for shape in shapes if not shape.endswith("[]")]
            shapes = shapes[len(shapes) // 2 :]
        found.update(f"{operation} {shape}" for shape in shapes)
    return dict(found)
