"""What `layertap shards ...` and `layertap fleet ...` do."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager

from layertap.config.fleet import CreateShardsConfig, FleetStatusConfig, ResetShardsConfig, ShardsStatusConfig
from layertap.errors import LayertapError, UsageError
from layertap.fleet import standing
from layertap.fleet.sharded import create_shards, read_dataset
from layertap.fleet.status import FleetWatch, describe
from layertap.objects import open_store
from layertap.objects.base import ObjectStore


def create(config: CreateShardsConfig) -> int:
    """`layertap shards create`."""
    dataset, there = create_shards(config)
    records = [shard.records for shard in dataset.shards]
    print(
        f"{'already there: ' if there else ''}{sum(records)} records in {len(records)} shards of"
        f" {min(records)} to {max(records)} in {config.output}"
    )
    if dataset.skipped:
        print(f"{len(dataset.skipped)} malformed records were left out; dataset.json lists them")
    return 0


def status(config: ShardsStatusConfig) -> int:
    """`layertap shards status`."""
    with opened(config.dataset) as store:
        standings = standing.look(store, read_dataset(store))
    print(json.dumps(standing.as_json(standings), indent=1) if config.json else standing.describe(standings))
    return 0


def reset_shards(config: ResetShardsConfig) -> int:
    """`layertap shards reset`."""
    with opened(config.dataset) as store:
        dataset = read_dataset(store)
        shards = dataset.shards if config.all else [dataset.shard(number) for number in config.shard_id]
        freed = standing.reset(store, shards, force=config.force)
    print(f"{freed} of {len(shards)} shards were not free, and are now")
    return 0


def fleet_status(config: FleetStatusConfig) -> int:
    """`layertap fleet status`; with `--watch`, 1 where shards failed."""
    with opened(config.dataset) as store:
        watch = FleetWatch(store, read_dataset(store))
        while True:
            seen = watch.look()
            print(seen.as_json() if config.json else describe(seen), flush=True)
            if not config.watch:
                return 0
            if seen.ended:
                return LayertapError.exit_status if seen.failures else 0
            time.sleep(config.poll_seconds)
            if not config.json:
                print()


@contextmanager
def opened(url: str) -> Iterator[ObjectStore]:
    """The store of a sharded dataset; raises UsageError where shards cannot be claimed in it."""
    store = open_store(url)
    try:
        if not store.conditional:
            raise UsageError(f"{url}: workers cannot claim shards there; it has to be a folder or gs://")
        yield store
    finally:
        store.close()
