"""Decoding: the one way from the files of a shard to its content, for the reader, `verify` and
`inspect`.

safetensors are read by parts: the header once, then ranges of rows. A pickle can only be read
whole, one file a site, after its checksum was compared; it stays in memory as long as its shard
does.
"""

from layertap.objects.base import ObjectStore
from layertap.shards.manifest import Manifest, ShardEntry
from layertap.shards.pickled_shard import PickledShard
from layertap.shards.shard import Shard
from layertap.shards.tensor_shard import TensorShard


def open_shard(store: ObjectStore, manifest: Manifest, entry: ShardEntry) -> Shard:
    """A shard of the output folder `store`, of which nothing is read yet."""
    kind = TensorShard if manifest.format == "safetensors" else PickledShard
    return kind(store, manifest, entry)
