"""The faults that `make mutants` puts into modules; its list can be run."""

from pathlib import Path

import pytest

from benchmarks.mutants.drawing import TESTS, read_list, source_of
from benchmarks.mutants.making import make_mutants

ROOT = Path(__file__).parents[2]

SOURCE = '''"""A module."""
LIMIT: int = 3


def clip(value: int | None, low: int = 0) -> int:
    """A docstring."""
    return max(low, min(value + len("x"), LIMIT))


class Pair:
    @property
    def first(self) -> int:
        if self.a < 1:
            self.b += 1
        if self.a < 1:
            self.b += 1
        return self.a
'''


def test_faults_are_put_into_constants_defaults_functions_and_properties() -> None:
    made = make_mutants("room.name", SOURCE)
    changes = {(mutant.scope, mutant.after) for mutant in made}
    assert ("", "LIMIT: int = 4") in changes
    assert ("clip", "def clip(value: int | None, low: int = 1) -> int:") in changes
    assert ("clip", 'return max(low, min(value - len("x"), LIMIT))') in changes
    assert ("Pair.first", "if self.a <= 1:") in changes


def test_types_docstrings_and_decorators_stay() -> None:
    for source in make_mutants("room.name", SOURCE).values():
        compile(source, "mutant", "exec")
        for kept in ("value: int | None", '"""A docstring."""', "@property"):
            assert kept in source
        assert "len(None)" not in source


def test_equal_lines_in_a_function_are_told_apart() -> None:
    made = make_mutants("room.name", SOURCE)
    alike = [mutant for mutant in made if mutant.after == "self.b -= 1"]
    assert [mutant.occurrence for mutant in alike] == [0, 1]
    assert len({made[mutant] for mutant in alike}) == 2


def test_a_mutant_is_the_same_when_other_lines_move() -> None:
    moved = make_mutants("room.name", SOURCE.replace("LIMIT: int", "\n# More is said here.\nLIMIT: int"))
    assert set(moved) == set(make_mutants("room.name", SOURCE))


@pytest.mark.parametrize("module", TESTS)
def test_what_was_drawn_can_be_run(module: str) -> None:
    """Most of the list must still apply: a change of the module may remove some mutants.

    If it removes more, draw a new list.
    """
    drawn = [mutant for mutant in read_list() if mutant.module == module]
    assert len(set(drawn)) == 50
    lines = {line.strip() for line in source_of(ROOT, module).read_text().splitlines()}
    assert sum(lines.issuperset(mutant.before.splitlines()) for mutant in drawn) >= 40
    assert all((ROOT / "tests" / test).is_file() for test in TESTS[module])
