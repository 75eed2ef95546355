"""Many workers on one dataset: dealt out beforehand, or claimed piece by piece.

    config    the flags of these commands
    source    the dataset that is dealt out, wherever it comes from, as sound records
    streams   one JSONL file for each worker, round robin
    sharded   a dataset cut into shards, in a folder or bucket
    claims    what stands in a claim
    leases    who has a shard, and who commits it
    claiming  which shard is next for a worker
    worker    claim, extract, commit, and the next
    engine    several workers, started again when they die: local_engine (with local_worker) as processes of this
              machine, ray_engine as tasks of a Ray cluster
    standing  how far the shards are; making some free again
    status    who works on what, how fast, and how long still
    commands  `layertap shards`, `layertap fleet`

Only `worker`, which extracts, brings JAX with it: what deals datasets out and looks after them runs on a laptop.
"""
