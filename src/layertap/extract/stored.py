"""A sample, cut out of the step that computed it: what joins the shard."""

from dataclasses import asdict
from typing import Any

from layertap.extract.packing import Placement
from layertap.extract.step import HostOutputs
from layertap.extract.windows import Window
from layertap.prompts import Sample
from layertap.shards.samples import StoredSample

_PREVIEW_CHARACTERS = 200


def stored_sample(window: Window, place: Placement, arrays: HostOutputs) -> StoredSample:
    """The sample that stands at `place`, with its part of the step's outputs."""
    sample = window.samples[place.sample]
    span = slice(place.start, place.start + place.length)
    return StoredSample(
        sample_idx=sample.sample_idx,
        task_id=sample.task_id,
        text_preview=sample.text[:_PREVIEW_CHARACTERS],
        origin=_origin(sample),
        token_ids=sample.token_ids,
        # Copied: a view would keep the whole step in memory for as long as one of its samples waits to be written.
        activations={tap: rows[place.row][span].copy() for tap, rows in arrays.items()},
    )


def _origin(sample: Sample) -> dict[str, Any]:
    """Which prompt of its task a sample is; enough to make the augmentation again and revert it."""
    augmentation = None if sample.augmentation is None else asdict(sample.augmentation)
    return {"test_index": sample.test_index, "prediction": sample.prediction, "augmentation": augmentation}
