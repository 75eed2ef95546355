"""Many workers on one dataset: dealt out beforehand, or claimed piece by piece.

    config    the flags of these commands
    source    the dataset that is dealt out, wherever it comes from, as sound records
    streams   one JSONL file for each worker, round robin
    sharded   a dataset cut into shards, in a folder or bucket
    claims    what stands in a claim
    leases    who has a shard, and who commits it
    standing  how far the shards are; making some free again
    commands  `layertap shards`

No JAX is imported by what deals datasets out: it runs on a laptop.
"""
