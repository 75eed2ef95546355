"""What is measured, and how often."""

from dataclasses import dataclass, replace
from typing import Literal

from layertap.config.extract import StorageDtype

Dtype = Literal["bfloat16", "float32"]
Device = Literal["cpu", "gpu"]
Contender = Literal[
    "padded", "best", "layertap", "forward", "ceiling", "stages", "formats", "encode", "stream", "saelens"
]
Measure = Literal[
    "compare", "depth", "sites", "stages", "formats", "encode", "memory", "output", "start", "stream", "prefix"
]

_BASELINE_BATCHES = 2


@dataclass(frozen=True)
class _Settings:
    """The settings that all runs of a benchmark share."""

    measure: Measure = "compare"
    """compare: with transformers, and with the machine's ceiling. depth: half of the layers against
    all. sites: three sites against one. stages: the whole run against forward and writing alone.
    formats: how fast shards are written. encode: what encoding costs, on one core and on two, and
    what the whole pipeline writes where the device costs nothing. memory: the peak for the tasks
    and for four times as many. output: the whole run as pickle against safetensors. start: a first
    start against a second one. stream: batches from a running model against SAELens' own and
    against a run to disk; give one of --layers. prefix: what all prompts begin with computed once,
    against with each prompt."""

    device: Device = "cpu"
    """Where everything computes; gpu: one NVIDIA card, the first of CUDA_VISIBLE_DEVICES, for torch
    too (which then has to be a CUDA build)."""

    dataset_path: str | None = None
    """ARC tasks, for example ARC-AGI-1 training as JSONL; None: tasks of our own generators."""

    tokenizer: str | None = None
    """A folder with the tokenizer to use, for example Qwen2.5's; None: the demo's, whose prompts
    are longer."""

    tasks: int = 12
    """How many tasks Layertap extracts, one prompt for each test input. Each of 12 costs Layertap
    a share of its start and of a last row that is not full: with 48 its tokens/s are a fifth
    higher, and a turn takes two and a half minutes more on two cores."""

    baseline_batches: int | None = None
    """How many batches of 4 prompts transformers is given, spread evenly over those of all tasks,
    so that they are as uneven as the rest; None, or more than there are: all, on cpu 2, which
    halves the time."""

    repeats: int = 3
    """How often each contender runs; they take turns, and the median counts."""

    dtypes: tuple[Dtype, ...] = ()
    """Compute dtypes; none stand for bfloat16 and float32, on gpu for bfloat16."""

    layers: tuple[int, ...] = ()
    """Layers that Layertap keeps; none stand for all. transformers always returns all."""

    activation_type: tuple[Literal["residual", "mlp", "attn"], ...] = ("residual",)
    """Sites that Layertap keeps."""

    format: Literal["pickle", "safetensors"] = "pickle"
    """What Layertap writes."""

    prefix: Literal["shared", "whole"] = "shared"
    """Whether Layertap computes once what all prompts begin with; `--measure prefix` takes both."""

    shard_size_gb: float = 1.0
    """Layertap's shards; smaller ones show sooner whether memory stays bounded."""

    output_dir: str = "benchmarks/out"
    """Where checkpoint, shards (removed again) and results go."""


@dataclass(frozen=True)
class BenchmarkConfig(_Settings):
    """Measure Layertap beside transformers, and both against what the machine can do."""

    size: tuple[str, ...] = ()
    """The shapes of the checkpoints that are made on the spot, each with a table of its own; none
    stand for 0.5b, on gpu for 0.5b, 1.5b and 7b."""


def resolved(config: BenchmarkConfig) -> BenchmarkConfig:
    """The settings with the sizes, dtypes and batches that suit the device where none were given.

    Raises SystemExit where there is nothing to compare with.
    """
    if config.baseline_batches is not None and config.baseline_batches < 1:
        raise SystemExit(f"--baseline_batches must be at least 1, not {config.baseline_batches}")
    gpu = config.device == "gpu"
    size = config.size or (("0.5b", "1.5b", "7b") if gpu else ("0.5b",))
    dtypes: tuple[Dtype, ...] = config.dtypes or (("bfloat16",) if gpu else ("bfloat16", "float32"))
    batches = config.baseline_batches or (None if gpu else _BASELINE_BATCHES)
    return replace(config, size=size, dtypes=dtypes, baseline_batches=batches)


@dataclass(frozen=True)
class ContenderConfig(_Settings):
    """One run of one contender, in a separate process."""

    size: str = "0.5b"
    """The shape of the checkpoint."""

    contender: Contender = "layertap"
    """padded: batches of 4, padded, `AutoModelForCausalLM`. best: `AutoModel`, without padding or
    nearly. forward: Layertap, nothing written."""

    dtype: Dtype = "bfloat16"
    """Compute dtype of this run."""

    storage_dtype: StorageDtype = "float32"
    """What `encode` stores."""

    cores: int | None = None
    """How many cores `encode`, and a whole run on an accelerator, may use; None: those of the
    process."""
