"""The model's input: a dataset, how its records become prompts, and how those are packed.

With an opened model (session.py) this is enough to compute activations: nothing here knows about
output. A program that has texts instead of a dataset gives `Prompts` its own `records`.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from layertap.config.extract import RunConfig, local_path
from layertap.core.records import Record
from layertap.dataset import open_records
from layertap.errors import ModelError, UsageError
from layertap.model.checkpoint import Checkpoint
from layertap.pipeline import backend
from layertap.pipeline.hosts import Hosts
from layertap.pipeline.kept import KeptTokens
from layertap.pipeline.packing import row_ladder
from layertap.pipeline.prefix import Prefixes
from layertap.pipeline.windows import Position, Window, WindowRules, read_windows
from layertap.prompts import PromptMaker, SplitRules, load_template, load_tokenizer, parse_grid_encoder

_BEGINNING = Position()


@dataclass(frozen=True)
class Prompts:
    """Records, how they become prompts, how those are packed, and which tokens are stored."""

    records: Callable[[], Iterator[Record]]
    """Opens the dataset at its beginning."""
    maker: PromptMaker
    rules: WindowRules
    kept: KeptTokens = KeptTokens()  # noqa: RUF009 - it is frozen

    def windows(self, start: Position = _BEGINNING) -> Iterator[Window]:
        """The windows from `start` on; raises as `read_windows` does."""
        return read_windows(self.records(), self.maker, self.rules, start)


def read_dataset(config: RunConfig) -> Iterator[Record]:
    """The dataset of a run, from its beginning; raises UsageError if the run has no dataset."""
    if config.dataset is None:
        raise UsageError("no --dataset_path: a sharded dataset is extracted shard by shard")
    return open_records(config, config.max_tasks)


def prompt_maker(config: RunConfig, checkpoint: Checkpoint) -> PromptMaker:
    """The maker of prompts, with the model's tokenizer; raises an InputError if it cannot."""
    tokenizer = load_tokenizer(checkpoint.folder)
    if tokenizer.ordinary_size > checkpoint.config.vocab_size:  # an added token is refused in the prompt that has it
        raise ModelError(
            f"{checkpoint.folder}: the tokenizer has {tokenizer.ordinary_size} tokens, the model's embedding only"
            f" {checkpoint.config.vocab_size}; they belong to different models"
        )
    longest = min(config.max_seq_length, checkpoint.config.context or config.max_seq_length)
    folder = None if config.prompt_template is None else str(local_path(config.prompt_template))
    return PromptMaker(
        tokenizer=tokenizer,
        template=load_template(config.prompt_version, folder),
        encoder=parse_grid_encoder(config.grid_encoder),
        predictions_per_task=config.predictions_per_task,
        include_answer=config.include_answer,
        seed=config.random_seed,
        add_generation_prompt=config.add_generation_prompt,
        max_train_pairs=config.max_train_pairs,
        split=SplitRules(longest, config.split_overlap) if config.overlong == "split" else None,
        vocabulary=checkpoint.config.vocab_size,
    )


def window_rules(
    config: RunConfig,
    hosts: Hosts,
    devices: int,
    context: int | None = None,
    prefixes: Prefixes = Prefixes(),  # noqa: B008 - it is frozen
) -> WindowRules:
    """The rules for the windows of one of `hosts`. `devices` of its own share its steps, the model
    knows positions up to `context`, and samples begin with `prefixes`.
    """
    machine, machines = hosts.share(config.machine_id, config.total_machines)
    return WindowRules(
        window_samples=config.window_samples,
        ladder=row_ladder(config.row_length, config.max_seq_length),
        batch_size=config.batch_size or backend.usual_batch_size(backend.platform()),
        longest=min(config.max_seq_length, context or config.max_seq_length),
        context=context,
        overlong=config.overlong,
        on_bad_task=config.on_bad_task,
        machine_id=machine,
        total_machines=machines,
        devices=devices,
        prefixes=prefixes,
    )
