"""What the two threads promise about order and errors."""

import os
import sys
import threading

import pytest

from layertap.pipeline.background import NICE, BackgroundQueue, read_ahead


def test_read_ahead_gives_the_same_items_and_raises_where_the_next_would_have_been() -> None:
    def items():
        yield from range(20)
        raise ValueError("the next")

    with read_ahead(items()) as ahead:
        assert [next(ahead) for _ in range(20)] == list(range(20))
        with pytest.raises(ValueError, match="the next"):
            next(ahead)


def test_read_ahead_begins_before_it_is_asked() -> None:
    begun = threading.Event()

    def items():
        begun.set()
        yield 1

    with read_ahead(items()):
        assert begun.wait(10)


def test_the_thread_ends_where_items_are_left_unread() -> None:
    threads = set()

    def items():
        while True:
            threads.add(threading.current_thread())
            yield 1

    with pytest.raises(KeyboardInterrupt), read_ahead(items()) as ahead:  # noqa: PT012
        next(ahead)
        raise KeyboardInterrupt
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()


def test_queue_runs_calls_in_order() -> None:
    done: list[int] = []
    with BackgroundQueue() as queue:
        for number in range(10):
            queue.submit(lambda number=number: done.append(number))
        queue.finish()
    assert done == list(range(10))


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has a priority for each thread")
@pytest.mark.parametrize("gentle", [True, False])
def test_a_gentle_queue_gives_way_with_the_threads_it_starts_and_no_other(*, gentle: bool) -> None:
    seen: list[int] = []

    def look() -> None:
        seen.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))

    def start_another() -> None:
        look()
        another = threading.Thread(target=look)
        another.start()
        another.join()

    usual = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    with BackgroundQueue(gentle=gentle) as queue:
        queue.submit(start_another)
        queue.finish()
    look()
    assert seen == ([NICE, NICE, usual] if gentle else [usual] * 3)


def test_nothing_runs_behind_a_call_that_failed() -> None:
    done: list[int] = []
    gate = threading.Event()

    def fail() -> None:
        gate.wait(10)
        raise OSError("disk")

    with BackgroundQueue() as queue:
        queue.submit(fail)
        queue.submit(lambda: done.append(1))
        gate.set()
        with pytest.raises(OSError, match="disk"):
            queue.finish()
    assert done == []


def test_a_failed_call_is_reported_at_the_next_submit_that_must_wait() -> None:
    def fail() -> None:
        raise OSError("disk")

    with BackgroundQueue() as queue, pytest.raises(OSError, match="disk"):  # noqa: PT012
        queue.submit(fail)
        for _ in range(3):
            queue.submit(lambda: None)


def test_queued_calls_are_finished_when_the_block_ends_in_an_error() -> None:
    done: list[int] = []
    with pytest.raises(ValueError, match="elsewhere"), BackgroundQueue() as queue:  # noqa: PT012
        queue.submit(lambda: done.append(1))
        queue.submit(lambda: done.append(2))
        raise ValueError("elsewhere")
    assert done == [1, 2]
