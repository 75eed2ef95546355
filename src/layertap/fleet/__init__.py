"""Many workers on one dataset: one file for each worker, or shards that workers claim one by one.

Only `attempt` and `worker`, which extract, import JAX. The commands that prepare a dataset or watch
a fleet run on a laptop.
"""
