"""Real processes, signalled while they do various things."""

import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

PROCESS = """
import sqlite3, sys, time
from layertap.process.ending import interruptible

def wait():
    print("ready", flush=True)
    while True:
        time.sleep(1000)

def compute_in_c():
    endless = "with recursive n(x) as (select 1 union all select x + 1 from n) select count(*) from n"
    try:
        print("ready", flush=True)
        sqlite3.connect(":memory:").execute(endless).fetchone()
    finally:  # where the signal came before the query
        sqlite3.connect(":memory:").execute(endless).fetchone()

def finish_slowly():
    try:
        wait()
    finally:
        wait()

def finish():
    try:
        wait()
    except KeyboardInterrupt:
        print("finished", flush=True)
        raise

try:
    with interruptible(grace=float(sys.argv[2])):
        globals()[sys.argv[1]]()
except KeyboardInterrupt:
    sys.exit(7)
"""


def process(what: str, grace: float) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", PROCESS, what, str(grace)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as started:
        assert started.stdout.readline() == "ready\n"
        yield started
        started.kill()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_lets_the_process_finish_what_it_does(number):
    for started in process("finish", 1000):
        started.send_signal(number)
        output, errors = started.communicate(timeout=60)
        assert (output, started.returncode) == ("finished\n", 7)
        assert "interrupted" in errors


@pytest.mark.parametrize("what", ["compute_in_c", "finish_slowly"])
def test_after_sigterm_the_process_is_gone_when_its_time_is_up_whatever_it_does(what):
    for started in process(what, 0.5):
        started.send_signal(signal.SIGTERM)
        _, errors = started.communicate(timeout=60)
        assert started.returncode == 130
        assert "time is up" in errors


@pytest.mark.parametrize(("first", "second"), [(signal.SIGINT, signal.SIGINT), (signal.SIGTERM, signal.SIGINT)])
def test_a_second_signal_ends_it_at_once(first, second):
    for started in process("finish_slowly", 1000):
        started.send_signal(first)
        assert "interrupted" in started.stderr.readline()
        started.send_signal(second)
        started.communicate(timeout=60)
        assert started.returncode == 130


@pytest.mark.parametrize(("what", "status"), [("finish", 7), ("finish_slowly", 130)])
def test_a_process_that_nobody_listens_to_ends_all_the_same(what, status):
    for started in process(what, 1000 if what == "finish" else 0.5):
        started.stderr.close()
        started.send_signal(signal.SIGTERM)
        assert started.wait(60) == status
        assert started.stdout.read() == ("finished\n" if what == "finish" else "ready\n")


def test_ctrl_c_has_no_deadline():
    for started in process("finish_slowly", 0.0):
        started.send_signal(signal.SIGINT)
        assert "interrupted" in started.stderr.readline()
        with pytest.raises(subprocess.TimeoutExpired):
            started.wait(0.5)
