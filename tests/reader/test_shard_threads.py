"""One shard of safetensors, read by several threads."""

import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import outputs
import pytest

from layertap.core.taps import Tap
from layertap.objects import open_store
from layertap.objects.local import LocalStore
from layertap.shards.manifest_files import require_manifest
from layertap.shards.tensor_shard import TensorShard


def open_first() -> TensorShard:
    """Open a shard with two layers at two sites and read nothing yet.

    In version 1 each has a file.
    """
    store = open_store(str(Path(__file__).parents[1] / "data" / "version_1" / "safetensors"))
    manifest = require_manifest(store)
    return TensorShard(store, manifest, manifest.shards[0])


@pytest.fixture
def tensors() -> TensorShard:
    return open_first()


def test_the_first_headers_of_a_shard_are_read_side_by_side(
    tensors: TensorShard, monkeypatch: pytest.MonkeyPatch
) -> None:
    together = threading.Barrier(4, timeout=20)
    view = LocalStore.view

    def meeting(self: LocalStore, name: str, start: int, length: int) -> np.ndarray:
        if start == 0:
            together.wait()
        return view(self, name, start, length)

    monkeypatch.setattr(LocalStore, "view", meeting)
    taps = [Tap(layer, site) for site in ("residual", "mlp") for layer in outputs.LAYERS]
    with ThreadPoolExecutor(4) as pool:
        flags = list(pool.map(lambda tap: tensors.column("flags", 0, 8, tap), taps))
    assert [len(found) for found in flags] == [8] * 4


def test_a_header_is_read_once_by_many_threads(tensors: TensorShard, monkeypatch: pytest.MonkeyPatch) -> None:
    headers: list[str] = []
    view = LocalStore.view

    def counted(self: LocalStore, name: str, start: int, length: int) -> np.ndarray:
        if start == 0:
            headers.append(name)
            time.sleep(0.05)
        return view(self, name, start, length)

    monkeypatch.setattr(LocalStore, "view", counted)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: tensors.offsets(), range(16)))
    assert len(headers) == 1


def test_a_header_that_another_thread_reads_at_any_moment_does_no_harm() -> None:
    """Between any two instructions of one thread's call, another thread reads the header of another
    layer.
    """

    def call_with_another_at(moment: int) -> bool:
        """Return whether the call has so many instructions."""
        shard = open_first()
        shard.column("token_ids", 0, 8)
        passed = [0]

        def trace(frame: FrameType, event: str, _: Any) -> Any:
            if Path(frame.f_code.co_filename).name not in (
                "tensor_shard.py",
                "shard.py",
                "once.py",
            ):  # others may hold a lock
                return None
            frame.f_trace_opcodes = True
            if event == "opcode":
                passed[0] += 1
                if passed[0] == moment:
                    other = threading.Thread(target=shard.column, args=("flags", 0, 8, Tap(2, "residual")))
                    other.start()
                    other.join(20)
            return trace

        sys._getframe().f_trace_opcodes = True  # before: Python 3.12 asks for instructions only where a frame did
        sys.settrace(trace)
        try:
            shard.column("token_ids", 0, 8)
        finally:
            sys.settrace(None)
        return passed[0] >= moment

    moments = 0
    while call_with_another_at(moments + 1):
        moments += 1
    assert moments > 20
