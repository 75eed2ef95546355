"""How a process of Layertap behaves if a terminal cannot show its output, or nobody reads it any
more.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import commands
import pytest

from layertap.process import supervised
from layertap.process.ending import NOBODY_READS, run_guarded

Ended = subprocess.CompletedProcess[bytes]


def printing(text: str, stream: str = "stdout") -> str:
    program = "import sys; from layertap.process.ending import run_guarded\n"
    return program + f"sys.exit(run_guarded(lambda: print({text}, file=sys.{stream}) or 0))"


C_LOCALE = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


@pytest.mark.parametrize(
    ("variables", "shown"),
    [
        ({"PYTHONIOENCODING": "latin-1"}, b"Caf\xe9 ? ok\n"),
        ({"PYTHONIOENCODING": "ascii"}, b"Caf? ? ok\n"),
        (C_LOCALE, b"Caf? ? ok\n"),
    ],
)
def test_what_a_terminal_cannot_show_is_replaced(
    variables: dict[str, str], shown: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PYTHONIOENCODING", raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    done = ended(printing(r"'Caf\u00e9 \u4f60 ok'"))
    assert (done.returncode, done.stdout, done.stderr) == (0, shown, b"")


@pytest.fixture
def unread() -> Iterator[int]:
    """The writing end of a pipe whose reading end is closed."""
    reading, writing = os.pipe()
    os.close(reading)
    yield writing
    os.close(writing)


def ended(program: str, *, stdout: int = subprocess.PIPE, stderr: int = subprocess.PIPE) -> "Ended":
    environment = {**os.environ, "PYTHONPATH": str(commands.ROOT / "src")}
    return subprocess.run([sys.executable, "-c", program], env=environment, stdout=stdout, stderr=stderr, check=False)


@pytest.mark.parametrize("text", ["'little'", "'much' * 100_000"])
def test_a_reader_that_leaves_early_ends_a_command_in_silence(text: str, unread: int) -> None:
    done = ended(printing(text), stdout=unread)
    assert (done.returncode, done.stderr) == (NOBODY_READS, b"")


def test_so_it_does_on_standard_error(unread: int) -> None:
    assert ended(printing("'words'", "stderr"), stderr=unread).returncode == NOBODY_READS


def test_help_whose_reader_has_left_is_silent_too(unread: int) -> None:
    for words in (["--help"], ["verify", "--help"], ["--version"]):
        done = ended(f"import sys; from layertap.cli import main; sys.exit(main({words}))", stdout=unread)
        assert (done.returncode, done.stderr) == (NOBODY_READS, b""), words


def test_a_pipe_that_broke_elsewhere_keeps_its_traceback() -> None:
    def broken() -> int:
        raise BrokenPipeError("a socket")

    with pytest.raises(BrokenPipeError, match="a socket"):
        run_guarded(broken)


@pytest.mark.parametrize("closed", ["0<&-", "1>&-", "2>&-", "0<&- 1>&- 2>&-"])
def test_a_closed_standard_stream_leads_nowhere(closed: str, tmp_path: Path) -> None:
    """A file that is opened later must not get its number."""
    program = (
        "import os, sys; from layertap.process.ending import run_guarded\n"
        "def work():\n"
        "    print(sys.stdin.isatty(), sys.stdout.isatty(), file=sys.stderr)\n"
        "    with open('kept', 'wb') as kept:\n"
        "        kept.write(b'kept')\n"
        "        os.write(1, b'out'), os.write(2, b'err')\n"
        "    return 0\n"
        "sys.exit(run_guarded(work))"
    )
    environment = {**os.environ, "PYTHONPATH": str(commands.ROOT / "src")}
    command = ["bash", "-c", f'"$0" -c "$1" {closed}', sys.executable, program]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "kept").read_bytes() == b"kept"


def test_what_looked_like_a_trace_is_shown_where_the_child_ended_by_itself(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    program = "import sys; sys.stderr.write('*** Check failure\\nerror: what matters\\n'); sys.exit(2)"
    monkeypatch.setattr(sys, "orig_argv", ["python", "-c", program])
    assert supervised.supervise() == 2
    assert "error: what matters" in capsys.readouterr().err


def test_a_host_goes_on_although_nobody_reads_what_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    program = "import sys; sys.stderr.write('words\\n' * 100_000)"
    monkeypatch.setattr(sys, "orig_argv", ["python", "-c", program])
    reading, writing = os.pipe()
    os.close(reading)
    with suppress(BrokenPipeError), os.fdopen(writing, "w") as nowhere:
        monkeypatch.setattr(sys, "stderr", nowhere)
        assert supervised.supervise() == 0
