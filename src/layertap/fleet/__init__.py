"""Many workers on one dataset: dealt out beforehand, or claimed piece by piece.

    config    the flags of these commands
    source    the dataset that is dealt out, wherever it comes from, as sound records
    streams   one JSONL file for each worker, round robin

No JAX is imported by what deals datasets out: it runs on a laptop.
"""
