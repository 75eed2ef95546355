"""Small runs in this process."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from layertap.config import ExtractConfig
from layertap.extract.run import extract


def changed(config: ExtractConfig, **changes: Any) -> ExtractConfig:
    return dataclasses.replace(config, **changes)


def out(config: ExtractConfig) -> Path:
    return Path(config.output_dir)


def manifest(config: ExtractConfig) -> dict[str, Any]:
    return json.loads((out(config) / "metadata.json").read_text())


def lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines()


def extract_some(config: ExtractConfig, count: int) -> dict[str, Any]:
    """Run, and be interrupted as the commit after `count` shards begins."""
    from layertap.store.writer import ShardWriter

    commit = ShardWriter.commit

    def interrupted(self: ShardWriter, *arguments: Any, **options: Any) -> None:
        if len(self.manifest.shards) == count:
            raise KeyboardInterrupt
        commit(self, *arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ShardWriter, "commit", interrupted)
        with pytest.raises(KeyboardInterrupt):
            extract(config)
    path = out(config) / "metadata.json"
    return json.loads(path.read_text()) if path.exists() else {"shards": []}
