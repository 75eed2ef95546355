"""Batches may be left at any point and in any way: nothing is said, nothing is waited for, no
thread stays."""

import gc
import threading
import time
from collections.abc import Callable, Iterator
from itertools import count, permutations
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import commands
import outputs
import pytest

from layertap import ActivationDataset
from layertap.errors import UsageError
from layertap.reader import workers
from layertap.reader.pieces import Pieces

POOL = 2000


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An output folder in each format, with two pools of tokens."""
    folder = tmp_path_factory.mktemp("root")
    for form in ("safetensors", "pickle"):
        samples = [outputs.sample(index, POOL // 10) for index in range(20)]
        outputs.write(folder / form, [samples[:10], samples[10:]], outputs.shard_format(name=form))
    return folder


def own_threads() -> list[str]:
    names = [thread.name for thread in threading.enumerate()]
    return [name for name in names if name.startswith(("read-activations", "make-batches"))]


def leave_by_break(batches: Any) -> None:
    for _ in batches:
        break


def leave_by_an_exception(batches: Any) -> None:
    def train() -> None:
        for batch in batches:
            raise ValueError(len(batch))

    with pytest.raises(ValueError, match="100"):
        train()


def leave_by_a_second_one(batches: Any) -> None:
    first, second = iter(batches), iter(batches)
    next(first)
    next(second)
    with pytest.raises(UsageError, match="another loop"):
        next(first)
    next(second)


def leave_in_a_circle_that_another_thread_collects(batches: Any) -> None:
    circle: list[Any] = [iter(batches)]
    circle.append(circle)
    next(circle[0])
    del circle
    collector = threading.Thread(target=gc.collect)
    collector.start()
    collector.join()


def leave_at_the_end(batches: Any) -> None:
    assert sum(map(len, batches)) == 2 * POOL


def leave_before_the_first(batches: Any) -> None:
    iter(batches)


@pytest.mark.parametrize("form", ["safetensors", "pickle"])
@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize(
    "leave",
    [
        leave_by_break,
        leave_by_an_exception,
        leave_by_a_second_one,
        leave_in_a_circle_that_another_thread_collects,
        leave_at_the_end,
        leave_before_the_first,
    ],
)
def test_whoever_leaves_leaves_no_thread(root: Path, form: str, shuffle: bool, leave: Callable[[Any], None]) -> None:
    leave(ActivationDataset(root / form).batches(100, shuffle=shuffle, pool_tokens=POOL))
    assert own_threads() == []


def test_all_may_go_in_any_order(root: Path) -> None:
    for order in permutations(("dataset", "batches", "iterator")):
        held: dict[str, Any] = {"dataset": ActivationDataset(root / "safetensors")}
        held["batches"] = held["dataset"].batches(100, pool_tokens=POOL)
        held["iterator"] = iter(held["batches"])
        next(held["iterator"])
        for name in order:
            del held[name]
        assert own_threads() == [], order


@pytest.mark.whole
def test_the_garbage_collector_may_come_by_in_a_thread_that_reads(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left, collected = threading.Event(), threading.Event()
    read = Pieces.read

    def collecting(self: Pieces, number: int) -> Any:
        if left.is_set() and not collected.is_set():
            gc.collect()
            collected.set()
        return read(self, number)

    monkeypatch.setattr(Pieces, "read", collecting)
    circle: list[Any] = [iter(ActivationDataset(root / "safetensors").batches(1, pool_tokens=POOL, piece_tokens=1))]
    circle.append(circle)
    next(circle[0])
    gc.disable()
    try:
        left.set()
        del circle
        assert collected.wait(60)
    finally:
        gc.enable()
    deadline = time.monotonic() + 60
    while own_threads():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_leaving_waits_for_pieces_not_for_a_pool(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left = threading.Event()
    begun = count(1)
    reads = [0]
    read = Pieces.read

    def slow_behind_the_first_pool(self: Pieces, number: int) -> Any:
        reads[0] = next(begun)
        if reads[0] > POOL:
            left.wait(60)
            time.sleep(0.05)
        return read(self, number)

    monkeypatch.setattr(Pieces, "read", slow_behind_the_first_pool)
    batches = ActivationDataset(root / "safetensors").batches(100, pool_tokens=POOL, piece_tokens=1)
    iterator: Iterator[Any] | None = iter(batches)
    next(iterator)
    left.set()
    iterator = None
    assert own_threads() == []
    assert reads[0] < POOL + POOL // 5  # all of the second pool, if it waited for that


_SCRIPT = """
import sys
from layertap import ActivationDataset
root, way = sys.argv[1:]
def begun(form, **settings):
    iterator = iter(ActivationDataset(f"{root}/{form}").batches(100, pool_tokens=2000, **settings))
    next(iterator)
    return iterator
shuffled, pickled = begun("safetensors"), begun("pickle")
ordered = begun("safetensors", shuffle=False)
circle = [begun("safetensors", piece_tokens=1)]
circle.append(circle)
fresh = iter(ActivationDataset(f"{root}/safetensors").batches(100))
sys.held = sys.modules["__main__"], begun("safetensors")  # destroyed last, when other modules are empty already
def train():
    for number, batch in enumerate(begun("safetensors", piece_tokens=1)):
        if number == 3:
            if way == "raise":
                raise RuntimeError("the loss is not a number")
            if way == "exit":
                sys.exit(7)
            return
train()
del ActivationDataset
"""


@pytest.mark.whole
@pytest.mark.parametrize(("way", "status"), [("end", 0), ("exit", 7), ("raise", 1)])
def test_python_ends_in_silence_inside_an_epoch(root: Path, way: str, status: int) -> None:
    """Each process leaves iterators in a module's globals, in a circle and in a frame, and one that
    was never used.
    """
    done = commands.run(["-c", _SCRIPT, root, way], root)
    assert done.returncode == status, done.stderr
    said = done.stderr.splitlines()
    if way == "raise":
        assert said[0] == "Traceback (most recent call last):"
        assert said[-1] == "RuntimeError: the loss is not a number"
        assert sum("Traceback" in line or "ignored" in line for line in said) == 1
    else:
        assert said == []


def test_threads_that_hang_are_waited_for_once_and_not_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []
    clock = count()
    monkeypatch.setattr(workers, "time", SimpleNamespace(monotonic=lambda: float(next(clock))))
    team = workers.Workers(8, "hanging")
    threads, team._threads = team._threads, [SimpleNamespace(ident=0, join=waited.append) for _ in range(8)]
    workers.dismiss([team])
    for thread in threads:
        thread.join()
    assert waited == [4.0, 3.0, 2.0, 1.0, 0.0, 0.0, 0.0, 0.0]
