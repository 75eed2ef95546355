"""A sample, cut out of the step that computed it: what joins the shard."""

from layertap.core.sample import Sample
from layertap.extract.packing import Placement
from layertap.extract.step import HostOutputs
from layertap.extract.windows import Window


def stored_sample(window: Window, place: Placement, arrays: HostOutputs) -> Sample:
    """The sample at `place`, with its part of the step's outputs."""
    span = slice(place.start, place.start + place.length)
    # Copied: a view would keep the whole step in memory for as long as one of its samples waits to
    # be written.
    activations = {tap: rows[place.row][span].copy() for tap, rows in arrays.items()}
    return window.samples[place.sample].with_activations(activations)
