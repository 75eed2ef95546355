"""Each kind of thing that a test can leave behind makes that test fail, with a message that names
it.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import leaks
import pytest

_TESTS = """
import os, socket, subprocess, sys, threading, time
import pytest

kept = []
waits = (sys.executable, "-c", "input()")

def test_a_thread():
    threading.Thread(target=threading.Event().wait, name="forgotten", daemon=True).start()

def test_a_child():
    kept.append(subprocess.Popen(waits, stdin=subprocess.PIPE))

def test_a_child_that_nobody_waited_for():
    kept.append(subprocess.Popen((sys.executable, "-c", "")))

def test_a_grandchild():
    reading, writing = os.pipe()
    kept.append(writing)
    start = "import subprocess; subprocess.Popen({!r})".format(waits)
    subprocess.run((sys.executable, "-c", start), stdin=reading, check=True)
    os.close(reading)

def test_a_listening_socket():
    kept.append(socket.create_server(("127.0.0.1", 0)))

def test_a_connection():
    with socket.create_server(("127.0.0.1", 0)) as server:
        kept.append(socket.create_connection(server.getsockname()))

def test_a_file(tmp_path):
    kept.append(open(tmp_path / "written", "w"))

def test_an_entry_of_the_working_directory():
    os.mkdir("checkpoints")

def test_a_variable():
    os.environ["FORGOTTEN"] = "1"

def test_what_is_cleared_away(monkeypatch):
    monkeypatch.setenv("OTHER", "1")
    subprocess.run((sys.executable, "-c", ""), check=True)
    with socket.create_server(("127.0.0.1", 0)):
        thread = threading.Thread(target=time.sleep, args=(0.01,))
        thread.start()  # may end a little later

@pytest.fixture(scope="module")
def server():
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server

def test_what_a_wider_fixture_holds(server):
    pass
"""


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return what pytest says about these tests."""
    folder = tmp_path_factory.mktemp("leaking")
    (folder / "test_leaking.py").write_text(_TESTS)
    (folder / "pytest.ini").write_text("[pytest]\nleak_seconds = 0.2\n")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "leaks", "-p", "no:cacheprovider", "-W", "ignore"]
    environment = {**os.environ, "PYTHONPATH": str(Path(leaks.__file__).parent), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, stdin=subprocess.PIPE, capture_output=True, text=True)
    return done.stdout


@pytest.mark.parametrize(
    ("test", "left"),
    [
        ("a_thread", r"thread forgotten"),
        ("a_child", r"process \d+: \S*python\S* -c input\(\)"),
        ("a_child_that_nobody_waited_for", r"process \d+: ended, but never waited for"),
        ("a_grandchild", r"process \d+: \S*python\S* -c input\(\)"),
        ("a_listening_socket", r"socket \d+: \('127.0.0.1', \d+\), listening"),
        ("a_connection", r"socket \d+: \('127.0.0.1', \d+\), connected to"),
        ("a_file", r"file \d+: \S*written"),
        ("an_entry_of_the_working_directory", r"checkpoints in /\S*leaking"),
        ("a_variable", r"variable FORGOTTEN: was None, is '1'"),
    ],
)
def test_what_is_left_behind_fails_the_test_that_left_it(report: str, test: str, left: str) -> None:
    assert re.search(rf"^test_leaking.py::test_{test} left behind:\n  {left}", report, re.MULTILINE), report


def test_nothing_else_fails(report: str) -> None:
    assert "11 passed, 9 errors" in report, report
