"""Many workers on one dataset: one file per worker, or shards that workers claim one at a time.

Only `attempt` and `worker`, which extract, import JAX. The commands that prepare a dataset or watch
a fleet run on a laptop.
"""
