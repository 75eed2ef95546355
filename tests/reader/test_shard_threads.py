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
from layertap.reader.content import TensorShard
from layertap.reader.sources import find_sources


@pytest.fixture
def tensors(tmp_path: Path) -> TensorShard:
    """A shard with two layers at two sites, of which nothing is read yet."""
    form = outputs.shard_format(("residual", "mlp"), name="safetensors")
    outputs.write(tmp_path, outputs.three_shards(form.sites)[:1], form)
    (source,) = find_sources(open_store(str(tmp_path)), None)
    return TensorShard(source, source.manifest.shards[0])


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
        flags = list(pool.map(lambda tap: tensors.flags(tap, 0, 8), taps))
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


def test_a_header_that_another_thread_reads_at_any_moment_does_no_harm(tmp_path: Path) -> None:
    """Between any two instructions of one thread's call, another thread reads the header of another layer."""
    form = outputs.shard_format(name="safetensors")
    outputs.write(tmp_path, outputs.three_shards()[:1], form)
    (source,) = find_sources(open_store(str(tmp_path)), None)

    def call_with_another_at(moment: int) -> bool:
        """Whether the call has so many instructions."""
        shard = TensorShard(source, source.manifest.shards[0])
        shard.token_ids(0, 8)
        passed = [0]

        def trace(frame: FrameType, event: str, _: Any) -> Any:
            if Path(frame.f_code.co_filename).name not in ("content.py", "once.py"):  # others may hold a lock
                return None
            frame.f_trace_opcodes = True
            if event == "opcode":
                passed[0] += 1
                if passed[0] == moment:
                    other = threading.Thread(target=shard.flags, args=(Tap(2, "residual"), 0, 8))
                    other.start()
                    other.join(20)
            return trace

        sys._getframe().f_trace_opcodes = True  # before: Python 3.12 asks for instructions only where a frame did
        sys.settrace(trace)
        try:
            shard.token_ids(0, 8)
        finally:
            sys.settrace(None)
        return passed[0] >= moment

    moments = 0
    while call_with_another_at(moments + 1):
        moments += 1
    assert moments > 20
