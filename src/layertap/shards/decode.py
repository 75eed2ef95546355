"""Decoding: from the files of a shard back to its content.

The reader, `verify` and `inspect` all use it; no other code reads shards.

A safetensors file is read in parts: the header once, then ranges of rows. A pickle can only be read
whole. There is one for each site. Its checksum is compared first, and it stays in memory as long as
its shard does.
"""

from layertap.objects.base import ObjectStore
from layertap.shards.manifest import Manifest, ShardEntry
from layertap.shards.pickled_shard import PickledShard
from layertap.shards.shard import Shard
from layertap.shards.tensor_shard import TensorShard


def open_shard(store: ObjectStore, manifest: Manifest, entry: ShardEntry) -> Shard:
    """Return a shard of the output folder `store`. This call reads nothing yet."""
    kind = TensorShard if manifest.format == "safetensors" else PickledShard
    return kind(store, manifest, entry)
