"""`layertap.extract`: the command as a function that returns its output as a dataset."""

from dataclasses import fields

from layertap.config.arguments import Group
from layertap.config.extract import ExtractConfig
from layertap.config.keywords import from_keywords
from layertap.config.sharded import ShardedConfig
from layertap.errors import InputError, UsageError
from layertap.pipeline import run
from layertap.reader.dataset import ActivationDataset

_GROUPS: tuple[Group, ...] = ("", "input", "prompt", "model", "tap", "output", "cloud")
_SHARES = frozenset({"worker_id", "machine_id", "total_machines"})


def extract(**settings: object) -> ActivationDataset:
    """Extract activations; resumes where an earlier call with the same settings stopped.

        dataset = layertap.extract(dataset_path="tasks.jsonl", layers_to_extract=[12])

    `settings` are the flags of `layertap extract` without dashes: `dataset_path`, `model_path`,
    `layers_to_extract`, `activation_type`, `output_dir`, `format` and all the others, with the same
    defaults. Give several values as a list, and layers also as a range. For workers that claim
    shards, and for models over several hosts, use the command.

    Returns the dataset in `output_dir`. Committed shards are always safe: call it again to resume.
    Raises the errors that the command prints: an InputError for what you can fix (also if nothing
    was extracted), StorageError if output cannot be written.
    """
    of_workers = [field.name for field in fields(ShardedConfig) if field.name in settings]
    if of_workers:
        raise UsageError(
            f"{', '.join(of_workers)}: works only with the command `layertap extract`, which starts workers"
        )
    config = from_keywords(ExtractConfig, settings, _GROUPS, _SHARES)
    summary = run.extract(config)
    if (reason := summary.nothing_extracted) is not None:
        raise InputError(f"{reason}; {summary.output_dir}/metadata.json lists them")
    return ActivationDataset(config.output_place)
