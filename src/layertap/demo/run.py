"""`layertap demo`: the whole of Layertap on a model and tasks that are made on the spot.

No download, no GPU, under a minute. The weights are random, so the activations mean nothing;
everything else is as in a real run: a checkpoint in Hugging Face layout, a real byte-level BPE,
ARC-style tasks, three sites in one pass, shards and a manifest, verified.
"""

import os
import sys

from layertap.check.verify import verify
from layertap.config.demo import DemoConfig
from layertap.config.extract import ExtractConfig, local_path
from layertap.demo.checkpoint import write_checkpoint
from layertap.demo.tasks import make_tasks, write_tasks
from layertap.errors import DamageError, UsageError

_NEXT = """
Next:
  {python} -m layertap verify {output}
  {python} -m layertap extract --dataset_path {tasks} --model_path {model} \\
      --layers_to_extract 1 3 --output_dir ./activations
  {python} -m layertap extract --dataset_path YOUR_TASKS.jsonl --model_path Qwen/Qwen2.5-0.5B \\
      --layers_to_extract 6 12 18
docs/formats.md shows how a shard is read, with nothing but gzip, pickle and numpy."""


def demo(config: DemoConfig) -> None:
    """Make, extract, verify, and print the steps; DamageError if the output is damaged."""
    from layertap.pipeline.run import extract

    folder = local_path(config.output_dir)
    model, tasks, output = folder / "model", folder / "tasks.jsonl", folder / "activations"
    if output.exists():
        raise UsageError(f"{output} already exists; remove {folder} to run the demo again, or give --output_dir")
    shape = write_checkpoint(model, "tiny", seed=config.seed)
    print(f"{model}: a Qwen2 checkpoint with random weights, {shape.num_hidden_layers} layers of {shape.hidden_size}")
    write_tasks(tasks, make_tasks(config.num_tasks, config.seed))
    print(f"{tasks}: {config.num_tasks} ARC-style tasks")
    run = ExtractConfig(
        dataset_path=str(tasks),
        model_path=str(model),
        activation_type=("residual", "mlp", "attn"),
        output_dir=str(output),
        checkpoint_dir=str(folder / "checkpoints"),
    )
    print(extract(run).describe())
    report = verify(output)
    print(report.describe())
    if not report.sound:
        raise DamageError(f"{output}: the demo's own output did not pass verification; please report this")
    print(_NEXT.format(python=os.path.relpath(sys.executable), output=output, tasks=tasks, model=model))
