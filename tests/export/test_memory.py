"""Four times the data take no more memory: one shard at a time is in memory."""

from pathlib import Path

import commands
import exports
import numpy as np
import outputs
import pytest

from layertap.core.taps import Tap
from layertap.shards.form import ShardFormat

WIDTHS = {Tap(0, "residual"): 256}
SHARD_MB = 12
PROGRAM = (  # not ru_maxrss, which begins with what the parent had
    "import re, sys; from layertap.cli import main; status = main(sys.argv[1:]);"
    r" print(re.search(r'VmHWM:\s+(\d+) kB', open('/proc/self/status').read())[1]); sys.exit(status)"
)


def write(folder: Path, shards: int, form: str, shard_mb: int = SHARD_MB) -> Path:
    """A run with shards of this size."""
    layout = ShardFormat(WIDTHS, np.dtype(np.float32), False, form, False)
    tokens = shard_mb * 10**6 // (4 * 256)
    outputs.write(folder, [[outputs.sample(index, tokens, widths=WIDTHS)] for index in range(shards)], layout)
    return folder


def peak_mb(run: Path, out: Path, to: str) -> float:
    """The largest resident size of a process that exports and checks."""
    done = commands.run(["-c", PROGRAM, "export", str(run), str(out), "--to", to], run)
    assert done.returncode == 0, done.stderr
    return int(done.stdout.splitlines()[-1]) / 1000


@pytest.mark.whole
@pytest.mark.parametrize("form", ["pickle", "safetensors"])
def test_memory_does_not_grow_with_the_data(form: str, tmp_path: Path) -> None:
    once, four_times = write(tmp_path / "once", 4, form), write(tmp_path / "four", 16, form)
    for to in exports.FORMS:
        less, more = (peak_mb(run, tmp_path / f"{run.name}_{to}", to) for run in (once, four_times))
        assert more - less < 1.5 * SHARD_MB, f"{to}: {less:.0f} MB, and {more:.0f} MB for 12 shards more"


@pytest.mark.whole
@pytest.mark.parametrize("to", ["saelens", "memmap"])
def test_of_safetensors_not_even_a_shard_is_held(to: str, tmp_path: Path) -> None:
    small, large = (write(tmp_path / str(mb), 1, "safetensors", shard_mb=mb) for mb in (50, 200))
    less, more = (peak_mb(run, tmp_path / f"{run.name}_{to}", to) for run in (small, large))
    assert more - less < 40, f"{less:.0f} MB, and {more:.0f} MB for a shard that is 150 MB larger"
