"""`Model`: reads texts, conversations, token ids and ARC tasks, and returns their activations.

It is a run without output files. Prompts are made, packed and computed as in `layertap extract`, so
the numbers are those of the command. The prefix of the prompts is computed with each of them unless
you pass `share_prefix=True`: that compiles more programs, which does not pay for a few prompts.
Config and tokenizer are loaded at once. Weights are loaded at the first `read`, up to the highest
layer requested, and stay. Each set of taps compiles once per shape of step; compiled programs are
also cached on disk, as for the command.

Samples come in the order of the inputs. Inputs are packed in windows of a few dozen. A sample waits
in memory until those before it are ready, so a reading of any length needs only the memory of a
window. Ctrl-C ends a reading and leaves the model usable.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from os import PathLike
from typing import Any, get_args

from layertap.api.memory import Reading
from layertap.config.extract import RunConfig
from layertap.config.keywords import from_keywords, refuse
from layertap.core import sample as core
from layertap.core.bar import open_bar
from layertap.core.records import GoodRecord
from layertap.core.taps import Site
from layertap.dataset.given import given_records
from layertap.errors import BadTaskError, UsageError
from layertap.model.checkpoint import open_checkpoint
from layertap.pipeline import backend
from layertap.pipeline.inputs import Prompts
from layertap.pipeline.progress import Progress, Watch
from layertap.pipeline.session import OpenedModel, Session, open_model
from layertap.pipeline.setup import DTYPES, open_run, resolve_run_taps
from layertap.pipeline.stream import stream_samples
from layertap.pipeline.windows import Position, Window
from layertap.prompts import PromptMaker
from layertap.reader.config import Dtype
from layertap.reader.sample import Sample

_WINDOW = 64
_DO_NOTHING = {"certify": "works only with the command; run `layertap extract` with it"}


class Model:
    """A model whose activations you read.

        model = layertap.Model("Qwen/Qwen2.5-0.5B")
        for sample in model.read(["a text", "another"], layers=[12]):
            sample.tokens, sample.activation(12)        # list of str, float32 [tokens, width]

    Weights are loaded with the first sample, up to the last layer that you ask for.
    """

    def __init__(self, model_path: str | PathLike[str] = "Qwen/Qwen2.5-0.5B", **settings: object) -> None:
        """Open a model: a folder with a checkpoint, or a model on the Hugging Face Hub.

        `settings` are the flags of `layertap extract` for models and prompts: `revision`,
        `adapter`, `compute_dtype`, `mesh`, `batch_size`, `row_length`, `max_seq_length`,
        `grid_encoder`, `prompt_version`, `predictions_per_task` and so on. Raises an InputError
        (ModelError, PromptError, UsageError) if the model or a setting is wrong.
        """
        given = {"window_samples": _WINDOW, "share_prefix": False, **settings, "model_path": model_path}
        self._config = config = from_keywords(RunConfig, given, ("", "prompt", "model"))
        refuse(settings, _DO_NOTHING)
        backend.configure()
        backend.start()
        self._checkpoint = open_checkpoint(config.model_path, config.revision, config.adapter)
        _, self._prompts = open_run(config, self._checkpoint, config.compute_dtype)
        self._session = Session()

    @property
    def num_layers(self) -> int:
        """How many layers it has, counted from 0."""
        return self._checkpoint.config.num_hidden_layers

    @property
    def hidden_size(self) -> int:
        """The width of the residual stream."""
        return self._checkpoint.config.hidden_size

    def width(self, site: Site) -> int:
        """Return how many numbers an activation has at this site."""
        return self._checkpoint.config.width(site)

    def read(
        self,
        inputs: object,
        *,
        layers: int | str | Sequence[int] | None = None,
        sites: Site | Sequence[Site] = ("residual",),
        dtype: Dtype = "float32",
        add_generation_prompt: bool | None = None,
        progress: bool | None = None,
    ) -> Iterator[Sample]:
        """Yield the samples of `inputs`, in their order, each as soon as it is ready.

        An input is a text, a conversation (a list of messages with `role` and `content`), a list or
        an array of token ids, or an ARC task. You may give a single input without a list. A text, a
        conversation and a list of ids give one sample each. An ARC task gives
        `predictions_per_task` (8) samples for each of its test inputs, as in the command. `inputs`
        may be a generator; it is consumed as samples are made.

        `layers` and `sites` are as on the command line (`12`, `[6, 12]`, `"1-3"`; None: all).
        `dtype` is the dtype of `sample.activation`; float32 holds every value of a bfloat16 model.
        `add_generation_prompt` ends conversations with the start of an assistant turn; None keeps
        the setting of the model. `progress` shows a bar, by default on a terminal and in a
        notebook.

        Raises BadTaskError for an invalid input, OverlongError for one longer than
        `max_seq_length`, and an InputError for layers that the model lacks. Wrong arguments raise
        at once; a wrong input raises when its window is read.
        """
        asked = {} if layers is None else {"layers_to_extract": layers}
        wanted = from_keywords(RunConfig, {**asked, "model_path": self._config.model_path, "activation_type": sites})
        taps = resolve_run_taps(wanted, self._checkpoint.config)
        compute = DTYPES[self._config.compute_dtype]
        opened = open_model(self._checkpoint, taps, compute, compute, self._config.mesh)
        maker = self._prompts.maker
        if add_generation_prompt is not None:
            maker = replace(maker, add_generation_prompt=add_generation_prompt)
        records = given_records(inputs)
        prompts = replace(self._prompts, maker=maker, records=lambda: _sound(records, maker))
        reading = Reading({tap: self.width(tap.site) for tap in taps}, maker.tokenizer.decode, DTYPES[_known(dtype)])
        return self._read(opened, prompts, reading, partial(open_bar, "samples", _length(inputs), progress))

    def _read(
        self, opened: OpenedModel, prompts: Prompts, reading: Reading, bar: Callable[[], Any]
    ) -> Iterator[Sample]:
        order: deque[int] = deque()
        windows = _noting_order(prompts.windows(), order)
        stream = stream_samples(self._session, opened, prompts.rules, windows, Progress(), Watch().proceed)
        with closing(stream), bar() as shown:
            for sample in _in_order(stream, order):
                shown.update()
                yield reading.sample(sample)

    def close(self) -> None:
        """End the threads that compile. You can read again; that starts new ones."""
        self._session.close()

    def __repr__(self) -> str:
        config = self._checkpoint.config
        return (
            f"Model {self._config.model_path}: {config.model_type}, {config.num_hidden_layers} layers,"
            f" {config.hidden_size} wide, computed in {self._config.compute_dtype} on {backend.computing_on()}"
        )


def _sound(records: Iterator[GoodRecord], maker: PromptMaker) -> Iterator[GoodRecord]:
    """Yield the records; raises BadTaskError if a record gives no prompt."""
    for record in records:
        if (reason := maker.refusal(record)) is not None:
            raise BadTaskError(f"{record.task_id}: {reason}")
        yield record


def _noting_order(windows: Iterator[Window], order: deque[int]) -> Iterator[Window]:
    """Yield the windows; append the numbers of their samples to `order` first."""
    for window in windows:
        order.extend(sorted(sample.sample_idx for sample in window.samples))
        yield window


def _in_order(stream: Iterator[tuple[Position, core.Sample]], order: deque[int]) -> Iterator[core.Sample]:
    """Yield the samples in that order; early samples wait."""
    waiting: dict[int, core.Sample] = {}
    for _, sample in stream:
        waiting[sample.sample_idx] = sample
        while order and order[0] in waiting:
            yield waiting.pop(order.popleft())


def _length(inputs: object) -> int | None:
    """Return the number of samples if it is obvious, else None."""
    return len(inputs) if isinstance(inputs, list) and all(isinstance(it, str) for it in inputs) else None


def _known(dtype: str) -> str:
    if dtype not in get_args(Dtype):
        raise UsageError(f"dtype={dtype!r}: give one of {', '.join(get_args(Dtype))}")
    return dtype
