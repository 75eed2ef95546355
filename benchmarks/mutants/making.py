"""Every mutant of a module: its source with one small fault, as mutmut's operators make them.

We use the operators of mutmut, not its command. Its command numbers the mutants of a function, so
no list of mutants outlives a change of that function. It leaves out constants, the fields of
classes and decorated functions, and so all properties. It also imports JAX again for each mutant.
The operators are plain functions from a node to nodes.

A mutant is known by what it changes, not by where: module, function, the lines before and after,
and which of several equal ones it is. So you can run the same mutants on another commit, as long as
these lines are in these functions. Types, decorators, docstrings and calls of `len` and
`isinstance` are left alone, as mutmut does: a mutant that a type checker finds, or that changes
nothing, says nothing about tests.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import libcst as cst
from mutmut.mutation.mutators import mutation_operators

LEFT_ALONE = {"len", "isinstance"}


@dataclass(frozen=True, order=True)
class Mutant:
    """One fault: in `module` (`room.name`), in `scope`, lines `before` become lines `after`."""

    module: str
    scope: str
    """The function or class, `Class.method`; empty: the module itself."""
    before: str
    after: str
    occurrence: int = 0
    """Which one of several that change equal lines in the same way; counted from 0."""

    @classmethod
    def from_json(cls, raw: dict[str, Any]) -> "Mutant":
        """Read what `to_json` wrote."""
        return cls(**raw)

    def to_json(self) -> dict[str, Any]:
        """Return the mutant as an entry of the list."""
        return asdict(self)

    def __str__(self) -> str:
        """The difference, as a person reads it."""
        before = "".join(f"\n- {line}" for line in self.before.splitlines())
        after = "".join(f"\n+ {line}" for line in self.after.splitlines())
        return f"{self.module} {self.scope or '(module)'}{before}{after}"


def make_mutants(module: str, source: str) -> dict[Mutant, str]:
    """Every mutant of a module with this source, and its source."""
    tree = cst.parse_module(source)
    made: dict[Mutant, str] = {}
    seen = Counter[Mutant]()
    for scope, before, after, text in _faults(tree, source):
        alike = Mutant(module, scope, before, after)
        made[Mutant(module, scope, before, after, seen[alike])] = text
        seen[alike] += 1
    return made


def _faults(tree: cst.Module, source: str) -> Iterator[tuple[str, str, str, str]]:
    """(scope, lines before, lines after, source) of each fault; only the statement with the fault
    is written again.
    """
    codes = [tree.code_for_node(statement) for statement in tree.body]
    written = source[: source.index("".join(codes))]
    for statement, code in zip(tree.body, codes, strict=True):
        visitor = _Visitor()
        statement.visit(visitor)
        for scope, node, changed in visitor.found:
            faulty = tree.code_for_node(statement.deep_replace(node, changed))
            text = written + faulty + source[len(written) + len(code) :]
            if faulty != code and _compiles(text):
                yield scope, *_difference(code, faulty), text
        written += code


class _Visitor(cst.CSTVisitor):
    """Collects (scope, node, what it becomes)."""

    def __init__(self) -> None:
        self.found: list[tuple[str, cst.CSTNode, cst.CSTNode]] = []
        self._scope: list[str] = []

    def on_visit(self, node: cst.CSTNode) -> bool:
        if _is_left_alone(node):
            return False
        if isinstance(node, cst.FunctionDef | cst.ClassDef):
            self._scope.append(node.name.value)
        self.found += [(".".join(self._scope), node, changed) for changed in _changes(node)]
        return True

    def on_leave(self, node: cst.CSTNode) -> None:
        if isinstance(node, cst.FunctionDef | cst.ClassDef) and not _is_left_alone(node):
            self._scope.pop()


def _changes(node: cst.CSTNode) -> Iterator[cst.CSTNode]:
    for kind, operator in mutation_operators:
        if isinstance(node, kind):
            yield from operator(node)


def _is_left_alone(node: cst.CSTNode) -> bool:
    if isinstance(node, cst.Annotation | cst.Decorator | cst.Import | cst.ImportFrom):
        return True
    return isinstance(node, cst.Call) and isinstance(node.func, cst.Name) and node.func.value in LEFT_ALONE


def _compiles(text: str) -> bool:
    try:
        compile(text, "mutant", "exec")
    except SyntaxError:
        return False
    return True


def _difference(code: str, faulty: str) -> tuple[str, str]:
    """The lines that differ, without their indentation, which may change."""
    old, new = code.splitlines(), faulty.splitlines()
    while old and new and old[0] == new[0]:
        old, new = old[1:], new[1:]
    while old and new and old[-1] == new[-1]:
        old, new = old[:-1], new[:-1]
    return "\n".join(map(str.strip, old)), "\n".join(map(str.strip, new))
