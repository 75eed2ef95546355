"""Where compiled programs are kept."""

import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from layertap.extract import backend

_NAME = "jax_compilation_cache_dir"


@pytest.fixture
def configured(monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """What `configure` tells JAX; this process's own JAX hears nothing of it."""
    told: dict[str, object] = {}
    monkeypatch.setattr(backend, "jax", SimpleNamespace(config=SimpleNamespace(update=told.__setitem__)))
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    return told


def test_they_are_in_the_users_cache_folder(
    configured: dict[str, object], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for cache, home in ((str(tmp_path / "caches"), tmp_path / "caches"), ("", tmp_path / ".cache")):
        monkeypatch.setenv("XDG_CACHE_HOME", cache)
        monkeypatch.setenv("HOME", str(tmp_path))
        backend.configure()
        assert configured[_NAME] == os.fspath(home / "layertap" / "xla")


def test_jaxs_own_variable_wins(configured: dict[str, object], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "gs://bucket/xla")
    backend.configure()
    assert _NAME not in configured


def test_programs_of_any_size_are_kept(configured: dict[str, object]) -> None:
    backend.configure()
    assert configured["jax_persistent_cache_min_compile_time_secs"] == 0
    assert configured["jax_persistent_cache_min_entry_size_bytes"] == -1
