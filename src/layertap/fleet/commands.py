"""The commands `layertap shards ...`, and `layertap fleet status`, which is `shards status`."""

import time

from layertap.config.fleet import CreateShardsConfig, ResetShardsConfig, ShardsStatusConfig
from layertap.errors import LayertapError
from layertap.fleet.sharded import MANIFEST, create_shards, open_claimable, read_dataset
from layertap.fleet.status import FleetWatch, describe_fleet, free_shards
from layertap.fleet.streams import FilesSummary


def create(config: CreateShardsConfig) -> int:
    """Run `layertap shards create`."""
    dataset, there = create_shards(config)
    counts = [shard.records for shard in dataset.shards]
    print(FilesSummary("shards", counts, config.output, MANIFEST, len(dataset.skipped), there).describe())
    return 0


def reset_shards(config: ResetShardsConfig) -> int:
    """Run `layertap shards reset`."""
    with open_claimable(config.dataset) as store:
        dataset = read_dataset(store)
        shards = dataset.shards if config.all else [dataset.shard(number) for number in config.shard_id]
        freed = free_shards(store, shards, force=config.force)
    print(f"freed {freed} of {len(shards)} shards; the others were already free")
    return 0


def status(config: ShardsStatusConfig) -> int:
    """Run `layertap shards status`; with `--watch`, return 1 if shards failed."""
    with open_claimable(config.dataset) as store:
        watch = FleetWatch(store, read_dataset(store))
        while True:
            seen = watch.read_status()
            print(seen.to_json() if config.json else describe_fleet(seen), flush=True)
            if not config.watch:
                return 0
            if seen.ended:
                return LayertapError.exit_status if seen.failures else 0
            time.sleep(config.poll_seconds)
            if not config.json:
                print()
