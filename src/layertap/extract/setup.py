"""Everything that a run needs, resolved and checked before the first weight is read.

`prepare` says what the run computes on, opens the checkpoint's small files, the tokenizer and the template, decides the
taps, and computes the run fingerprint: the hash of everything that decides the output's bytes. What it does not contain
can change between two starts of one run: paths, and what happens to records that are bad or samples that are too long,
as long as nothing of them was written. The dataset is recognised task by task instead (`windows.py`), so that a broken
line can be repaired and the run goes on.

The fingerprint needs the first numbers of each weight, so for a model on the Hub this is where its weights are fetched,
after `precheck.py` has found out what would stop the run anyway.
"""

import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
from jax.sharding import Mesh

import layertap
from layertap.config.extract import ExtractConfig, RunConfig, local_path
from layertap.config.sharded import ShardedConfig
from layertap.core.records import Record
from layertap.core.taps import Tap
from layertap.dataset import read_records
from layertap.errors import ModelError, UsageError
from layertap.extract import backend
from layertap.extract.device import opening
from layertap.extract.hosts import Hosts
from layertap.extract.packing import row_ladder
from layertap.extract.precheck import require_far_ends, require_folders
from layertap.extract.step import resolve_taps
from layertap.extract.windows import WindowRules
from layertap.model import weights
from layertap.model.checkpoint import Checkpoint, open_checkpoint
from layertap.model.config import MODEL_TYPE, Qwen2Config
from layertap.model.mesh import auto_shape, make_mesh, parse_mesh, weight_bytes
from layertap.prompts import PromptMaker, load_template, load_tokenizer, parse_grid_encoder
from layertap.shards.manifest import Manifest, fingerprint_of
from layertap.shards.pickles import codec
from layertap.shards.writer import ShardFormat

_DTYPES = {"float32": np.dtype(np.float32), "float16": np.dtype(np.float16), "bfloat16": np.dtype(ml_dtypes.bfloat16)}


_ALONE = Hosts()


@dataclass(frozen=True)
class Part:
    """A part of a dataset that is extracted on its own, with samples numbered as in the whole."""

    name: str
    dataset_path: str
    first_sample_idx: int
    output_dir: Path
    upload_url: str | None


@dataclass(frozen=True)
class Setup:
    """A resolved run."""

    config: ExtractConfig
    checkpoint: Checkpoint
    taps: tuple[Tap, ...]
    maker: PromptMaker
    rules: WindowRules
    shard_format: ShardFormat
    manifest: Manifest
    """The manifest of this run before its first shard."""
    mesh: Mesh | None
    """The devices that share rows and weights; None where there is one."""
    upload_url: str | None
    """Where the output is copied to; None: nowhere."""
    hosts: Hosts
    """The hosts that the devices of the mesh belong to."""

    @property
    def name(self) -> str:
        """What the output of this worker, or of this host of it, is called."""
        return self.hosts.name(self.config.worker)

    @property
    def num_layers(self) -> int:
        """How many layers are loaded and run."""
        return self.taps[-1].layer + 1

    @property
    def compute_dtype(self) -> np.dtype:
        """Operands of matrix products."""
        return _DTYPES[self.config.compute_dtype]

    def records(self) -> Iterator[Record]:
        """The dataset, from its beginning."""
        if self.config.dataset_path is None:
            raise UsageError("no --dataset_path: a sharded dataset is extracted shard by shard")
        return read_records(
            self.config.dataset_path, dataset_format=self.config.dataset_format, max_tasks=self.config.max_tasks
        )


def prepare(config: ExtractConfig, hosts: Hosts = _ALONE) -> Setup:
    """Resolve `config` for one of `hosts`, each of which has an output folder of its own; waits for the others.

    Raises an InputError where model, tokenizer, template or flags do not fit together, or hosts do not.
    """
    for line in opening(hosts):
        print(line, file=sys.stderr, flush=True)
    if hosts.count > 1:
        config = replace(config, output_dir=str(config.output_folder / f"tpu_{hosts.name(config.worker)}"))
    require_folders(config)
    checkpoint = open_checkpoint(config.model_path)
    url = config.upload.url(hosts.name(config.worker))
    if checkpoint.hub_id is not None:
        require_far_ends(config, url)
    taps = resolve_run_taps(config, checkpoint.config)
    maker = prompt_maker(config, checkpoint)
    mesh = _mesh(config, checkpoint, taps[-1].layer + 1)
    rules = window_rules(config, hosts, devices=1 if mesh is None else mesh.size // hosts.count)
    config = replace(config, batch_size=rules.batch_size)
    shard_format = format_of_shards(config, checkpoint.config, taps)
    identity = _identity(config, checkpoint, maker, taps, shard_format, rules)
    hosts.require_same(_of_all_hosts(config, identity, mesh))
    manifest = Manifest(
        fingerprint=fingerprint_of(identity),
        identity=identity,
        config=_plain(asdict(config) | {"storage_dtype": config.stored_as}),
        worker_id=config.worker,
        model_path=config.model_path,
        model_type=MODEL_TYPE,
        special_ids=tuple(sorted(maker.tokenizer.special_ids)),
        format=config.format,
        layers=shard_format.layers,
        sites=shard_format.sites,
        hidden_size=shard_format.hidden_size,
        storage_dtype=config.stored_as,
    )
    return Setup(config, checkpoint, taps, maker, rules, shard_format, manifest, mesh, url, hosts)


def for_part(setup: Setup, part: Part) -> Setup:
    """`setup`, changed to extract one part of a dataset into a place of its own."""
    config = replace(
        setup.config,
        dataset_path=part.dataset_path,
        dataset_format="jsonl",
        output_dir=str(part.output_dir),
        sharded=ShardedConfig(),
    )
    own: dict[str, Any] = {"part": part.name, "first_sample_idx": part.first_sample_idx}
    if setup.hosts.count > 1:
        own |= {"machine_id": setup.rules.machine_id, "total_machines": setup.rules.total_machines}
    identity = {**setup.manifest.identity, "dataset": own}
    return replace(
        setup,
        config=config,
        rules=replace(setup.rules, first_sample_idx=part.first_sample_idx),
        manifest=replace(setup.manifest, identity=identity, fingerprint=fingerprint_of(identity)),
        upload_url=part.upload_url,
    )


def resolve_run_taps(config: RunConfig, model: Qwen2Config) -> tuple[Tap, ...]:
    """Every (layer, site) that `config` asks for; raises ModelError for layers that `model` does not have."""
    num_layers = model.num_hidden_layers
    impossible = [layer for layer in config.layers_to_extract if layer >= num_layers]
    if impossible:
        raise ModelError(
            f"--layers_to_extract {' '.join(map(str, impossible))}: {config.model_path} has layers"
            f" 0 to {num_layers - 1}"
        )
    layers = sorted(set(config.layers_to_extract))
    return resolve_taps(layers, tuple(dict.fromkeys(config.activation_type)), num_layers)


def format_of_shards(config: RunConfig, model: Qwen2Config, taps: tuple[Tap, ...]) -> ShardFormat:
    """How the run's shards are written."""
    return ShardFormat(
        layers=tuple(sorted({tap.layer for tap in taps})),
        sites=tuple(dict.fromkeys(config.activation_type)),
        hidden_size=model.hidden_size,
        dtype=_DTYPES[config.stored_as],
        compress=config.compress_shards,
        name=config.format,
    )


def prompt_maker(config: RunConfig, checkpoint: Checkpoint) -> PromptMaker:
    """What makes the run's prompts, with the checkpoint's tokenizer; raises an InputError where it cannot."""
    tokenizer = load_tokenizer(checkpoint.folder)
    if tokenizer.vocab_size > checkpoint.config.vocab_size:
        raise ModelError(
            f"{checkpoint.folder}: the tokenizer has {tokenizer.vocab_size} tokens, the model's embedding only"
            f" {checkpoint.config.vocab_size}; they belong to different models"
        )
    folder = None if config.prompt_template is None else str(local_path(config.prompt_template))
    return PromptMaker(
        tokenizer=tokenizer,
        template=load_template(config.prompt_version, folder),
        encoder=parse_grid_encoder(config.grid_encoder),
        predictions_per_task=config.predictions_per_task,
        include_answer=config.include_answer,
        seed=config.random_seed,
    )


def _mesh(config: ExtractConfig, checkpoint: Checkpoint, num_layers: int) -> Mesh | None:
    devices = jax.devices()
    if config.mesh == "auto":
        model = weights.abstract_model(checkpoint.config, num_layers, _DTYPES[config.compute_dtype])
        shape = auto_shape(len(devices), weight_bytes(model), backend.device_bytes())
    else:
        shape = parse_mesh(config.mesh)
    mesh = make_mesh(shape, devices)
    return None if mesh.size == 1 else mesh


def window_rules(config: RunConfig, hosts: Hosts, devices: int) -> WindowRules:
    """What the windows of one of `hosts` depend on, where `devices` of its own share its steps."""
    machine, machines = hosts.share(config.machine_id, config.total_machines)
    return WindowRules(
        window_samples=config.window_samples,
        ladder=row_ladder(config.row_length, config.max_seq_length),
        batch_size=config.batch_size or backend.usual_batch_size(backend.platform()),
        longest=config.max_seq_length,
        overlong=config.overlong,
        on_bad_task=config.on_bad_task,
        machine_id=machine,
        total_machines=machines,
        devices=devices,
    )


def _identity(
    config: ExtractConfig,
    checkpoint: Checkpoint,
    maker: PromptMaker,
    taps: tuple[Tap, ...],
    shard_format: ShardFormat,
    rules: WindowRules,
) -> dict[str, Any]:
    packing = ("row_length", "batch_size", "max_seq_length", "window_samples")
    return {
        "layertap": layertap.__version__,
        "backend": backend.description(),
        "model": {
            "weights": checkpoint.identity(weights.tensor_names(taps[-1].layer + 1)),
            "compute_dtype": config.compute_dtype,
        },
        "layers": list(shard_format.layers),
        "sites": list(shard_format.sites),
        "prompts": _plain(maker.identity()),
        "dataset": {
            "max_tasks": config.max_tasks,
            "machine_id": rules.machine_id,
            "total_machines": rules.total_machines,
        },
        "certify": config.certify,
        "packing": {name: getattr(config, name) for name in packing}
        | {"truncate": config.overlong == "truncate", "devices": rules.devices},
        "storage": {
            "format": config.format,
            "dtype": config.stored_as,
            "shard_bytes": config.shard_bytes,
            "codec": codec(compress=config.compress_shards and config.format == "pickle"),
        },
    }


def _of_all_hosts(config: ExtractConfig, identity: dict[str, Any], mesh: Mesh | None) -> dict[str, Any]:
    """What decides which programs run, and which samples are whose."""
    return {
        **identity,
        "dataset": identity["dataset"]
        | {
            "machine_id": config.machine_id,
            "total_machines": config.total_machines,
            "sharded": config.sharded.sharded_dataset_dir is not None,
        },
        "mesh": None if mesh is None else dict(mesh.shape),
    }


def _plain(value: Any) -> Any:  # noqa: ANN401 - JSON in, JSON out
    """What `value` is once it has been through JSON: tuples become lists, so that it compares equal when read back."""
    return json.loads(json.dumps(value))
