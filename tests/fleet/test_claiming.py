"""What a worker looks at before it claims a shard."""

from collections import Counter
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from claiming import claim
from fleets import cut

from layertap.fleet.attempt import Attempts
from layertap.fleet.claiming import Claimer
from layertap.fleet.sharded import read_dataset
from layertap.objects import open_store


def test_the_disk_is_listed_once_a_claim_however_many_shards_are_left(
    demo_tasks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: Counter[Path] = Counter()
    folder = tmp_path / "tpu_0"

    def counted(look: Callable[[Path], Any]) -> Callable[[Path], Any]:
        def counting(path: Path) -> Any:
            looks.update([path] if path.is_relative_to(folder) else [])
            return look(path)

        return counting

    for name in ("iterdir", "is_dir", "exists"):
        monkeypatch.setattr(Path, name, counted(getattr(Path, name)))
    cut(demo_tasks, str(tmp_path / "dataset"), 10)
    (folder / "shard_00009").mkdir(parents=True)
    with closing(open_store(str(tmp_path / "dataset"))) as store:
        attempts = Attempts(Mock(), store, folder, Mock())
        dataset = read_dataset(store)
        claimer = Claimer(store, dataset, lambda _: claim(), attempts.find_unfinished, lambda _: None)
        for left in (10, 9, 8):
            looks.clear()
            assert claimer.take_next() is not None, left
            assert looks == {folder: 2, folder / "shard_00009": 1}
