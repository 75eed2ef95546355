"""Comparisons of file contents fail at once, and name the file."""

import random
from pathlib import Path

import pytest
import shards
from clouds import BUCKET
from fakes.gcs import FakeGcs


def test_a_failing_comparison_names_the_file_and_prints_no_content(
    gcs: FakeGcs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CI", "true")  # there pytest prints differences in full
    chance = random.Random(0)
    for name in ("same", "differs"):
        (tmp_path / name).write_bytes(chance.randbytes(50_000))
        gcs.put(BUCKET, name, (tmp_path / name).read_bytes() + (b"!" if name == "differs" else b""))
    gcs.put(BUCKET, "owner.json", b"{}")
    with pytest.raises(AssertionError) as failed:
        assert gcs.contents(BUCKET) == shards.contents(tmp_path)
    message = str(failed.value)
    assert "differs" in message
    assert "owner.json" in message
    assert len(message) < 2_000
