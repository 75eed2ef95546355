"""What is measured, and how often."""

from dataclasses import dataclass
from typing import Literal

Dtype = Literal["bfloat16", "float32"]
Contender = Literal["padded", "best", "layertap", "ceiling", "stages", "formats"]
Measure = Literal["compare", "depth", "sites", "stages", "formats", "memory", "output", "start"]


@dataclass(frozen=True)
class BenchmarkConfig:
    """Measure Layertap beside transformers, and both against what the machine can do."""

    measure: Measure = "compare"
    """compare: with transformers, and with the machine's ceiling. depth: half of the layers against all. sites: three
    sites against one. stages: the whole run against forward and writing alone. formats: how fast shards are written.
    memory: the peak for the tasks and for four times as many. output: the whole run as pickle against safetensors.
    start: a first start against a second one."""

    device: Literal["cpu", "gpu"] = "cpu"
    """Where everything computes; gpu: one NVIDIA card, for torch too (which then has to be a CUDA build)."""

    dataset_path: str | None = None
    """ARC tasks, for example ARC-AGI-1 training as JSONL; None: tasks of our own generators."""

    tokenizer: str | None = None
    """A folder with the tokenizer to use, for example Qwen2.5's; None: the demo's, whose prompts are longer."""

    size: str = "0.5b"
    """The shape of the checkpoint that is made on the spot."""

    tasks: int = 48
    """How many tasks Layertap extracts, one prompt for each test input."""

    baseline_tasks: int = 48
    """How many of them transformers is given; fewer save time, and change its tokens/s little."""

    repeats: int = 3
    """How often each contender runs; they take turns, and the median counts."""

    dtypes: tuple[Dtype, ...] = ("bfloat16", "float32")
    """Compute dtypes."""

    layers: tuple[int, ...] = ()
    """Layers that Layertap keeps; none stand for all. transformers always returns all."""

    activation_type: tuple[Literal["residual", "mlp", "attn"], ...] = ("residual",)
    """Sites that Layertap keeps."""

    format: Literal["pickle", "safetensors"] = "pickle"
    """What Layertap writes."""

    shard_size_gb: float = 1.0
    """Layertap's shards; smaller ones show sooner whether memory stays bounded."""

    output_dir: str = "benchmarks/out"
    """Where checkpoint, shards (removed again) and results go."""


@dataclass(frozen=True)
class ContenderConfig(BenchmarkConfig):
    """One run of one contender, in a process of its own."""

    contender: Contender = "layertap"
    """padded: batches of 4, padded, `AutoModelForCausalLM`. best: one sequence at a time, `AutoModel`."""

    dtype: Dtype = "bfloat16"
    """Compute dtype of this run."""
