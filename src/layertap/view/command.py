"""`layertap inspect`: from the settings to the text that is printed."""

from contextlib import closing

from layertap.config.inspect import InspectConfig
from layertap.config.view import ViewConfig
from layertap.core.strict_json import dump_json
from layertap.errors import UsageError
from layertap.objects.base import ObjectStore
from layertap.reader.dataset import ActivationDataset
from layertap.shards.manifest_files import require_manifest
from layertap.view.decoding import find_decoder
from layertap.view.document import shard_to_json
from layertap.view.grids import Colours
from layertap.view.page import describe_sample, describe_shard
from layertap.view.shard import OnRead, choose_shard, choose_taps, find_sample, see_shard


def inspection_of(config: ViewConfig) -> InspectConfig:
    """Turn the settings of `layertap view --terminal` into those of `inspect`: one sample.

    The sample may be in any folder below the path. Raises UsageError where there is none.
    """
    with closing(ActivationDataset(config.path)) as dataset:
        try:
            sample = dataset.sample(config.samples[0]) if config.samples else next(iter(dataset), None)
        except KeyError as error:
            raise UsageError(f"--samples {config.samples[0]}: {error.args[0]}") from error
        if sample is None:
            raise UsageError(f"{config.path}: holds no sample")
        path = f"{config.path}/{sample.source}" if sample.source else config.path
        return InspectConfig(
            path=path,
            sample=str(sample.sample_idx),
            layer=config.layers,
            site=config.sites,
            model_path=config.tokenizer,
        )


def inspect(
    config: InspectConfig,
    store: ObjectStore,
    on_read: OnRead = lambda _done, _total: None,
    colours: Colours = "none",
) -> str:
    """Return lines for a person, or JSON.

    Settings are checked before a shard is read. Raises UsageError or PromptError for something that
    does not exist, DamageError for a damaged file.
    """
    manifest = require_manifest(store)
    sample = None if config.sample is None else find_sample(store, manifest, config.sample)
    entry = choose_shard(manifest, config.shard, sample)
    taps = choose_taps(manifest, config.layer, config.site)
    decoder = find_decoder(manifest, config.model_path)
    seen = see_shard(store, manifest, entry, taps, sample, on_read)
    if config.json:
        return dump_json(shard_to_json(seen, decoder, tokens=sample is not None), indent=2)
    if sample is None:
        return describe_shard(seen, decoder, config.max_samples, config.top)
    return describe_sample(seen, decoder, config.max_tokens, config.top, colours)
