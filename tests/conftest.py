"""Strict by default: no silent promotion of dtypes or ranks, two CPU devices, checkpoints made once a session."""

import os
from pathlib import Path

import jax
import pytest

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_num_cpu_devices", 2)

_SHARED = Path(os.environ.get("LAYERTAP_SHARED_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder with real ARC tasks and the real Qwen 2.5 tokenizer, which a clone alone does not have."""
    if not _SHARED.is_dir():
        pytest.skip(f"needs real ARC tasks and the Qwen 2.5 tokenizer: no folder {_SHARED} (set LAYERTAP_SHARED_DATA)")
    return _SHARED


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test sees the worker id of the machine it runs on."""
    monkeypatch.delenv("TPU_WORKER_ID", raising=False)
