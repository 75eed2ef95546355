"""The environments that the Makefile makes, a user's and one for tests, and the versions that go
into them.
"""

import re
import shutil
import subprocess
import tomllib
from itertools import product

import pytest
import yaml
from commands import ROOT
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

_PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
_WORKFLOW = yaml.safe_load((ROOT / ".github" / "workflows" / "check.yml").read_text())


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


def test_each_test_is_in_one_of_the_suites() -> None:
    """`make test-slow` runs all that `make test` leaves out, and properties again with more
    examples."""
    marks = ("whole", "slow", "proof", "hypothesis")
    fast, slow = (_selection(target) for target in ("test", "test-slow"))
    for has in product([False, True], repeat=len(marks)):
        marked = dict(zip(marks, has, strict=True))
        chosen = eval(fast, {}, marked), eval(slow, {}, marked)
        assert any(chosen) == (not marked["proof"]), marked
        assert all(chosen) == (marked["hypothesis"] and not any(has[:3])), marked


def _selection(target: str) -> str:
    """Return the expression over marks by which `make` chooses the tests of a suite."""
    (command,) = [line for line in recipe(target) if "/pytest " in line]
    (chosen,) = re.findall(r'-m "([a-z ()]+)"', command)
    return str(chosen)


@pytest.mark.parametrize("target", ["test", "test-slow", "check", "lint", "bench", "soak", "mutants", "format"])
def test_tests_leave_the_users_environment_alone(target: str) -> None:
    commands = recipe(target)
    assert any(command.startswith(".venv-test/bin/python -m pip install ") for command in commands)
    assert not [command for command in commands if ".venv/" in command]


def test_the_trainers_have_an_environment_of_their_own() -> None:
    commands = recipe("contract")
    assert all(command.startswith((".venv-contract/", "\t")) for command in commands if "pip" in command)
    assert not [command for command in commands if ".venv/" in command or ".venv-test/" in command]


def test_the_pages_are_built_in_an_environment_of_their_own() -> None:
    commands = recipe("docs")
    assert all(command.startswith((".venv-docs/", "\t")) for command in commands if "pip" in command)
    assert not [command for command in commands if re.search(r"\.venv(-(?!docs)|/)", command)]


def test_versions_of_the_trainers_are_pinned_once() -> None:
    folder = ROOT / "tests" / "contract"
    ours, theirs = (
        {canonicalize_name(Requirement(line).name) for line in path.read_text().splitlines() if line[0] != "#"}
        for path in (ROOT / "constraints.txt", folder / "constraints.txt")
    )
    assert not ours & theirs
    for name in ("requirements.txt", "without_dependencies.txt"):
        lines = [line.partition("#")[0].strip() for line in (folder / name).read_text().splitlines()]
        assert {canonicalize_name(Requirement(line).name) for line in lines if line} <= ours | theirs


def test_the_workflow_checks_every_python_that_the_project_names() -> None:
    matrix = _WORKFLOW["jobs"]["check"]["strategy"]["matrix"]
    named = re.findall(r"Python :: (3\.\d+)", "\n".join(_PROJECT["classifiers"]))
    assert matrix["python"] == named
    assert all(entry["may-fail"] for entry in matrix["include"])
    assert f">={named[0]}" == _PROJECT["requires-python"]


def test_the_workflow_runs_what_a_newcomer_runs_with_actions_that_cannot_change() -> None:
    steps = [step for job in _WORKFLOW["jobs"].values() for step in job["steps"]]
    called = {"make PYTHON=python demo", "make PYTHON=python check", "make PYTHON=python test-slow"}
    assert called <= {step.get("run") for step in steps}
    used = [step["uses"] for step in steps if "uses" in step]
    assert used
    assert all(re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40}", action) for action in used)


def test_the_hooks_are_targets_of_make() -> None:
    (local,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert local["repo"] == "local"
    for hook in local["hooks"]:
        make, target = hook["entry"].split()
        assert make == "make"
        assert any(command.startswith(".venv-test/bin/ruff ") for command in recipe(target))


@pytest.mark.parametrize("version", ["3.11", "3.12", "3.13"])
def test_each_python_has_one_version_of_each_package_and_a_jax_that_is_allowed(version: str) -> None:
    constraints = [Requirement(line) for line in (ROOT / "constraints.txt").read_text().splitlines() if line[0] != "#"]
    valid = [one for one in constraints if one.marker is None or one.marker.evaluate({"python_version": version})]
    pinned = {canonicalize_name(one.name): str(one.specifier).removeprefix("==") for one in valid}
    assert len(pinned) == len(valid)
    needed = [*_PROJECT["dependencies"], *_PROJECT["optional-dependencies"]["test"]]
    for requirement in map(Requirement, needed):
        assert requirement.specifier.contains(pinned[canonicalize_name(requirement.name)]), requirement
