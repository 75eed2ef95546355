"""The two environments that the Makefile makes: a user's, and one for tests, which must not get into the former."""

import shutil
import subprocess

import pytest
from commands import ROOT


def recipe(*targets: str) -> list[str]:
    """The commands that `make` would run in a clean clone."""
    make = shutil.which("make")
    if make is None:
        pytest.skip("needs make")
    command = [make, "--dry-run", "--always-make", "--no-print-directory", *targets]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()


def test_the_demo_installs_what_a_user_needs_into_the_users_environment() -> None:
    commands = recipe("demo")
    (install,) = [command for command in commands if "pip install" in command]
    assert install.startswith(".venv/bin/python ")
    assert install.endswith(" --editable .")
    assert commands[-1] == ".venv/bin/layertap demo"


@pytest.mark.parametrize("target", ["test", "test-slow", "check", "lint", "bench", "soak", "mutants", "format"])
def test_tests_leave_the_users_environment_alone(target: str) -> None:
    commands = recipe(target)
    assert any(command.startswith(".venv-test/bin/python -m pip install ") for command in commands)
    assert not [command for command in commands if ".venv/" in command]


def test_git_ignores_both() -> None:
    assert {".venv/", ".venv-test/"} <= set((ROOT / ".gitignore").read_text().splitlines())
