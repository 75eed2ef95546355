"""`layertap inspect`: from what was asked for to what is printed."""

from layertap.config.inspect import InspectConfig
from layertap.core.strict_json import dump_json
from layertap.objects.base import ObjectStore
from layertap.shards.manifest_files import require_manifest
from layertap.view.decoding import find_decoder
from layertap.view.document import shard_to_json
from layertap.view.page import describe_sample, describe_shard
from layertap.view.shard import OnRead, choose_shard, choose_taps, see_shard


def inspect(config: InspectConfig, store: ObjectStore, on_read: OnRead = lambda _done, _total: None) -> str:
    """Lines for a person, or JSON; everything that can be refused is refused before a shard is
    read.

    Raises UsageError or PromptError for what is not there, DamageError for what cannot be believed.
    """
    manifest = require_manifest(store)
    entry = choose_shard(manifest, config.shard, config.sample)
    taps = choose_taps(manifest, config.layer, config.site)
    decoder = find_decoder(manifest, config.model_path)
    seen = see_shard(store, manifest, entry, taps, config.sample, on_read)
    if config.json:
        return dump_json(shard_to_json(seen, decoder, tokens=config.sample is not None), indent=2)
    if config.sample is None:
        return describe_shard(seen, decoder)
    return describe_sample(seen, decoder, config.max_tokens)
