"""A dataset in a bucket, read by gcsfs in a process of its own, as it comes."""

from pathlib import Path

import commands
from clouds import BUCKET
from fakes.gcs import FakeGcs

COUNT = """
from layertap.dataset import read_records
print(sum(1 for _ in read_records("gs://bucket/data/tasks.jsonl", dataset_format="auto", max_tasks=None)))
"""


def test_a_dataset_is_read_from_a_bucket_without_a_question_about_the_bucket(
    gcs: FakeGcs, demo_tasks: Path, tmp_path: Path
) -> None:
    gcs.put(BUCKET, "data/tasks.jsonl", demo_tasks.read_bytes())
    read = commands.run(["-c", COUNT], tmp_path)
    assert (read.stdout, read.stderr) == ("10\n", "")
