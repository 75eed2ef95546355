"""The mirror alone; tests/pipeline/test_upload.py tests it in whole runs."""

import dataclasses
import threading
from pathlib import Path
from typing import Any

import pytest
from fakes.gcs_faults import wait_for

from layertap.config.upload import UploadConfig
from layertap.errors import StorageError
from layertap.objects import open_store
from layertap.objects.local import LocalStore
from layertap.objects.retry import Retry
from layertap.shards.manifest_files import load_manifest
from layertap.shards.mirror import Mirror
from layertap.shards.publisher import Far


class HangingStore(LocalStore):
    """Refuses the first shard, and does not answer for the second until the test says so."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.answers = threading.Event()

    def put(self, name: str, *arguments: Any, **more: Any) -> Any:
        if "shard_0001.pkl" in name:
            raise StorageError("the bucket is broken")
        self.answers.wait()
        return super().put(name, *arguments, **more)


def test_what_ends_the_mirror_is_said_also_while_an_upload_hangs(folder: Path, tmp_path: Path) -> None:
    store, retry, manifest = HangingStore(tmp_path / "bucket"), Retry(), load_manifest(open_store(str(folder)))
    with Mirror(Far(store, retry, lambda: None), folder, UploadConfig(upload_to="x"), None) as mirror:
        mirror.begin(dataclasses.replace(manifest, shards=manifest.shards[:2], complete=False))
        wait_for(lambda: retry.stopped)
        threading.Timer(0.1, store.answers.set).start()
        with pytest.raises(StorageError, match="the bucket is broken"):
            mirror.offer(manifest)
