"""Which room may import which, as docs/architecture.md says."""

import ast
from pathlib import Path

import pytest

import layertap
from layertap.core.bar import Bar

_PACKAGE = Path(layertap.__file__).parent

# A room may import itself, the ground floor, and the rooms named here.
_GROUND = {"errors", "core"}
_MAY_KNOW = {
    "errors": set(),
    "core": set(),
    "config": set(),
    "process": set(),
    "objects": set(),
    "dataset": {"config"},
    "prompts": set(),
    "model": set(),
    "shards": {"config", "objects"},
    "check": {"prompts", "shards", "objects"},
    "reader": {"prompts", "shards", "objects"},
    "sae": {"reader", "pipeline", "objects", "shards"},
    "view": {"config", "prompts", "shards", "objects", "reader", "sae"},
    "export": {"config", "reader", "shards", "objects"},
    "pipeline": {"config", "process", "dataset", "prompts", "model", "shards", "objects"},
    "plan": {"config", "dataset", "model", "pipeline", "shards", "objects"},
    "compare": {"config", "prompts", "model", "reader", "api"},
    "tpu": {"config"},
    "fleet": {"config", "process", "dataset", "pipeline", "shards", "objects", "check"},
    "demo": {"config", "dataset", "prompts", "model", "pipeline", "shards", "objects", "check"},
    "commands": {"config", "process", "objects", "shards", "check", "pipeline"}
    | {"demo", "plan", "tpu", "fleet", "view", "export", "compare"},
    "cli": {"config", "process", "commands", "tpu"},
    "__main__": {"cli"},
    "api": {"config", "dataset", "prompts", "model", "pipeline", "shards", "reader"},
    "__init__": {"reader", "api"},
}
_MAY_KNOW_JAX = {"model", "pipeline", "plan", "api", "sae"}
_HANDS_OVER = {"reader/handover.py", "export/adapters.py"}
"""Make arrays of JAX and torch for who asks for them, and import these when asked."""


def _imports(path: Path) -> set[str]:
    tree = ast.parse(path.read_text())
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    froms = (node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom))
    assert all(node.level == 0 for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)), f"{path}: relative"
    for node in froms:
        names.add(node.module or "")
        if node.module == "layertap":
            names |= {f"layertap.{alias.name}" for alias in node.names}
    return names


def _room(path: Path) -> str:
    return path.relative_to(_PACKAGE).parts[0].removesuffix(".py")


FILES = sorted(_PACKAGE.rglob("*.py"))


def test_every_room_has_its_rule() -> None:
    assert {_room(path) for path in FILES} == set(_MAY_KNOW)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(_PACKAGE).as_posix())
def test_imports_run_one_way(path: Path) -> None:
    room = _room(path)
    rooms = {name.split(".")[1] for name in _imports(path) if name.startswith("layertap.")}
    unknown = rooms - _MAY_KNOW[room] - _GROUND - {room}
    assert not unknown, f"{room} must not know {unknown}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(_PACKAGE).as_posix())
def test_jax_stays_where_it_is_needed(path: Path) -> None:
    heavy = {name.split(".")[0] for name in _imports(path)} & {"jax", "flax"}
    assert not heavy or _room(path) in _MAY_KNOW_JAX or _hands_over(path)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(_PACKAGE).as_posix())
def test_torch_is_never_needed(path: Path) -> None:
    assert not {name.split(".")[0] for name in _imports(path)} & {"torch", "transformers"} or _hands_over(path)


def _hands_over(path: Path) -> bool:
    """Return whether a file may import frameworks, and does so only in its functions."""
    if path.relative_to(_PACKAGE).as_posix() not in _HANDS_OVER:
        return False
    at_top = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.Import | ast.ImportFrom)]
    assert not {"jax", "torch"} & {name.split(".")[0] for node in at_top for name in ast.unparse(node).split()}
    return True


def test_bars_are_drawn_by_the_one_class_that_starts_no_thread() -> None:
    assert [path.name for path in FILES if "tqdm" in {name.split(".")[0] for name in _imports(path)}] == ["bar.py"]
    assert Bar.monitor_interval == 0


# Files that make JSON of which a hash is taken, or that other processes of the same run read.
_NOT_WRITTEN = {"pipeline/windows.py", "pipeline/hosts.py", "pipeline/setup.py", "shards/manifest.py"}
_WRITE_OUTPUT = {"shards", "objects", "check", "view", "export", "pipeline", "plan", "commands"}


@pytest.mark.parametrize("room", sorted(_WRITE_OUTPUT))
def test_output_is_written_as_strict_json(room: str) -> None:
    files = [path for path in FILES if _room(path) == room]
    plain = {path.relative_to(_PACKAGE).as_posix() for path in files if "json.dump" in path.read_text()}
    assert plain <= _NOT_WRITTEN, "use core.strict_json.dump_json"
