"""Whether a run waited for its own output, and what would help, in plain words.

The threads behind the main one work at the same time: some encode a shard, and one stores the shard
before it, and waits if a bucket is too far behind. The main thread waits for the slowest of the
three, so what helps depends on which it was.
"""

from collections.abc import Iterator, Mapping
from importlib.util import find_spec

from layertap.core.amounts import amount
from layertap.core.extras import install_command
from layertap.core.selection import ALL
from layertap.shards.manifest import Manifest
from layertap.shards.threads import usable_cores
from layertap.shards.writer import Work

_SHARE = 0.25
_SECONDS = 5.0
"""A run that waited less, or for a smaller share of its time, gets no hint."""


def describe_bottleneck(manifest: Manifest, spent: Mapping[Work, float], waited: float, working: float) -> str:
    """A sentence if `waited` of `working` seconds were spent on waiting for output, else nothing.
    Threads spent `spent` seconds on each kind of work.
    """
    if waited < max(_SECONDS, _SHARE * working):
        return ""
    slowest = max(spent, key=lambda work: spent[work])
    parts = ", ".join(f"{work} {seconds:.1f} s" for work, seconds in spent.items() if seconds >= 0.1)
    return (
        f"writing was the bottleneck: {waited / working:.0%} of the time went into waiting for it ({parts}; "
        f"{_cores()}). What would help: {'; '.join(_what_helps(manifest, slowest))}"
    )


def _what_helps(manifest: Manifest, slowest: Work) -> Iterator[str]:
    compressed = manifest.format == "pickle" and manifest.config.get("compress_shards", True)
    to_bucket = "://" in str(manifest.config.get("output_dir", ""))
    if slowest == "uploading" or (slowest == "storing" and to_bucket):
        yield "a bucket that is nearer, or more --uploads_at_once"
    elif slowest == "storing":
        yield "a faster disk"
    if slowest == "encoding" and compressed:
        yield "--format safetensors, which compresses nothing"
    if manifest.storage_dtype == "float32":
        exact = manifest.config.get("compute_dtype") == "bfloat16"
        yield f"--storage_dtype bfloat16, half the bytes{', which holds all that this run computes' if exact else ''}"
    if len(manifest.taps) > 1:
        yield "fewer --layers_to_extract"
    if ALL in manifest.keep_tokens:
        yield "fewer tokens, with --keep_tokens"
    if slowest == "encoding":
        if not compressed and find_spec("numba") is None:
            yield f"numba, which encodes large shards 1.5 to 4 times as fast: {install_command('fast')}"
        yield "more cores"


def _cores() -> str:
    return f"encoding had {amount(usable_cores(), 'core')}"
