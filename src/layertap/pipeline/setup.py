"""Everything that a run needs, resolved and checked before the first weight is read.

A run has three parts. `OpenedModel` (session.py) is what the device computes, and `Prompts`
(inputs.py) is its input; these two are enough to read activations into memory. The rest of `Setup`
is the output: its format, its manifest and where it is copied to. `prepare` is the one place that
resolves all three, in the order in which a user should hear what is wrong.

`prepare` also computes the run fingerprint: the hash of everything that decides the output's bytes.
What it leaves out may change between two starts of one run: paths, and what happens to bad records
or to samples that are too long, as long as nothing of them was written. The dataset is recognised
task by task instead (`windows.py`), so you can repair a broken line and continue.

The fingerprint needs the first numbers of each weight. So for a model on the Hub, the weights are
fetched here, which can take an hour. Everything that would stop the run anyway is therefore checked
before: folders are examined and not made, so a refusal leaves nothing behind; the first record of
the dataset is read; and the bucket is asked for one object. For a local model the run itself does
these last two just as soon.
"""

import json
import os
import sys
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

import layertap
from layertap.config.extract import ExtractConfig, RunConfig, StorageDtype, local_path
from layertap.config.sharded import ShardedConfig
from layertap.core.selection import ALL, parse_selection
from layertap.core.taps import Tap
from layertap.dataset import open_records, opening_lines
from layertap.errors import ModelError, UsageError
from layertap.model.checkpoint import Checkpoint, open_checkpoint
from layertap.model.config import DecoderConfig
from layertap.model.layout import tensor_names
from layertap.objects import open_store
from layertap.objects.retry import Retry
from layertap.pipeline import backend
from layertap.pipeline.hosts import Hosts
from layertap.pipeline.inputs import Prompts, prompt_maker, read_dataset, window_rules
from layertap.pipeline.kept import KeptTokens
from layertap.pipeline.prefix import find_prefixes
from layertap.pipeline.session import OpenedModel, open_model
from layertap.pipeline.step import resolve_taps
from layertap.shards.form import ShardFormat
from layertap.shards.manifest import FILE_NAME, Manifest, fingerprint_of
from layertap.shards.pickles import codec
from layertap.shards.quantised import FLOAT8

DTYPES = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float8_e4m3": FLOAT8,
    "int8": np.dtype(np.int8),
}
_ALONE = Hosts()


@dataclass(frozen=True)
class Part:
    """A part of a dataset that is extracted on its own, with samples numbered as in the whole."""

    name: str
    dataset_path: str
    first_sample_idx: int
    output_dir: str
    """A folder or a URL."""
    upload_url: str | None


@dataclass(frozen=True)
class Setup:
    """A resolved run: what is computed, from what, and where the output goes."""

    config: ExtractConfig
    model: OpenedModel
    prompts: Prompts
    shard_format: ShardFormat
    manifest: Manifest
    """The manifest of this run before its first shard."""
    upload_url: str | None
    """The URL that the output is copied to; None: no copy."""

    @property
    def hosts(self) -> Hosts:
        """The hosts that run this together."""
        return self.model.hosts

    @property
    def name(self) -> str:
        """The name of the output of this worker, or of this host of it."""
        return self.hosts.name(self.config.worker)


def prepare(config: ExtractConfig, hosts: Hosts = _ALONE) -> Setup:
    """Resolve `config` for one of `hosts`, each with its own output folder; waits for the others.

    Raises an InputError if model, tokenizer, template or flags do not fit together, or hosts do
    not.
    """
    for line in (*backend.opening_lines(hosts.index, hosts.count), *opening_lines(config)):
        print(line, file=sys.stderr, flush=True)
    if hosts.count > 1:
        config = replace(config, output_dir=config.output_below(f"tpu_{hosts.name(config.worker)}"))
    _require_folders(config)
    checkpoint = open_checkpoint(config.model_path, config.revision, config.adapter)
    url = config.upload.url(hosts.name(config.worker))
    if checkpoint.hub_id is not None:
        _require_far_ends(config, config.output_url or url)
    model, prompts = open_run(config, checkpoint, config.stored_as, hosts)
    config = replace(config, batch_size=prompts.rules.batch_size)
    shard_format = format_of_shards(config, checkpoint.config, model.taps)
    identity = identity_of(config, model, prompts, shard_format)
    hosts.require_same(_of_all_hosts(config, identity, model))
    manifest = Manifest(
        fingerprint=fingerprint_of(identity),
        identity=identity,
        config=_plain(asdict(config) | {"storage_dtype": config.stored_as}),
        worker_id=config.worker,
        model_path=_place_of(config, checkpoint),
        model_type=checkpoint.config.model_type,
        special_ids=tuple(sorted(prompts.maker.tokenizer.special_ids)),
        format=config.format,
        taps=shard_format.taps,
        storage_dtype=config.stored_as,
    )
    return Setup(config, model, prompts, shard_format, manifest, url)


def open_run(
    config: RunConfig, checkpoint: Checkpoint, handed_on: StorageDtype, hosts: Hosts = _ALONE
) -> tuple[OpenedModel, Prompts]:
    """Resolve what `config` computes and from what, with activations stored or returned in that
    dtype.

    Raises an InputError if taps, tokenizer, template or mesh do not fit the model.
    """
    taps = resolve_run_taps(config, checkpoint.config)
    maker = prompt_maker(config, checkpoint)
    model = open_model(checkpoint, taps, DTYPES[config.compute_dtype], DTYPES[handed_on], config.mesh, hosts)
    prefixes = find_prefixes(maker, share=config.share_prefix)
    rules = window_rules(config, hosts, model.devices, checkpoint.config.context, prefixes)
    return model, Prompts(partial(read_dataset, config), maker, rules, KeptTokens(config.keep_tokens))


def for_part(setup: Setup, part: Part) -> Setup:
    """`setup`, changed to extract one part of a dataset to its own place."""
    config = replace(
        setup.config,
        dataset_path=part.dataset_path,
        dataset_format="jsonl",
        output_dir=part.output_dir,
        sharded=ShardedConfig(),
    )
    rules = replace(setup.prompts.rules, first_sample_idx=part.first_sample_idx)
    own: dict[str, Any] = {"part": part.name, "first_sample_idx": part.first_sample_idx}
    if setup.hosts.count > 1:
        own |= {"machine_id": rules.machine_id, "total_machines": rules.total_machines}
    identity = {**setup.manifest.identity, "dataset": own}
    return replace(
        setup,
        config=config,
        prompts=replace(setup.prompts, records=partial(read_dataset, config), rules=rules),
        manifest=replace(setup.manifest, identity=identity, fingerprint=fingerprint_of(identity)),
        upload_url=part.upload_url,
    )


def resolve_run_taps(config: RunConfig, model: DecoderConfig) -> tuple[Tap, ...]:
    """The taps that `config` asks for; raises ModelError for layers that `model` lacks."""
    num_layers = model.num_hidden_layers
    impossible = [layer for layer in config.layers_to_extract if layer >= num_layers]
    if impossible:
        raise ModelError(
            f"--layers_to_extract {' '.join(map(str, impossible))}: {config.model_path} has layers"
            f" 0 to {num_layers - 1}"
        )
    layers = sorted(set(config.layers_to_extract))
    return resolve_taps(layers, tuple(dict.fromkeys(config.activation_type)), num_layers)


def _place_of(config: RunConfig, checkpoint: Checkpoint) -> str:
    """Where to find the tokenizer later: --model_path, and what else names the commit."""
    if checkpoint.hub_id is not None:
        return config.model_path if config.revision is None else f"{checkpoint.hub_id}@{config.revision}"
    return config.model_path if local_path(config.model_path) == checkpoint.folder else str(checkpoint.folder)


def format_of_shards(config: RunConfig, model: DecoderConfig, taps: tuple[Tap, ...]) -> ShardFormat:
    """The format of the run's shards."""
    sites = list(dict.fromkeys(config.activation_type))
    by_site = sorted(taps, key=lambda tap: sites.index(tap.site))
    return ShardFormat(
        taps={tap: model.width(tap.site) for tap in by_site},
        dtype=DTYPES[config.stored_as],
        compress=config.compress_shards,
        name=config.format,
        keep_nonfinite=config.on_nonfinite == "keep",
    )


def identity_of(config: RunConfig, model: OpenedModel, prompts: Prompts, shard_format: ShardFormat) -> dict[str, Any]:
    """Everything that decides the bytes of a run, except the dataset."""
    rules, checkpoint = prompts.rules, model.checkpoint
    needed = tensor_names(checkpoint.config, model.num_layers)
    merged = [adapter.identity(needed) for adapter in checkpoint.adapters]
    packing = ("row_length", "batch_size", "max_seq_length", "window_samples")
    return {
        "layertap": layertap.__version__,
        "backend": backend.description(),
        "model": {
            "weights": checkpoint.identity(needed),
            "compute_dtype": config.compute_dtype,
            **({"adapters": merged} if merged else {}),
        },
        "layers": list(shard_format.layers),
        "sites": list(shard_format.sites),
        "prompts": _plain(prompts.maker.identity()),
        "dataset": {
            "max_tasks": config.max_tasks,
            "machine_id": rules.machine_id,
            "total_machines": rules.total_machines,
        },
        "certify": config.certify,
        "packing": {name: getattr(config, name) for name in packing}
        | {"truncate": config.overlong == "truncate", "devices": rules.devices}
        | {"share_prefix": config.share_prefix},
        "storage": {
            "format": config.format,
            "dtype": config.stored_as,
            "shard_bytes": config.shard_bytes,
            **({} if ALL in config.keep_tokens else {"keep_tokens": list(parse_selection(config.keep_tokens))}),
            "codec": codec(compress=config.compress_shards and config.format == "pickle"),
        },
    }


def _of_all_hosts(config: ExtractConfig, identity: dict[str, Any], model: OpenedModel) -> dict[str, Any]:
    """What decides which programs run, and which samples belong to which host."""
    return {
        **identity,
        "dataset": identity["dataset"]
        | {
            "machine_id": config.machine_id,
            "total_machines": config.total_machines,
            "sharded": config.sharded.sharded_dataset_dir is not None,
        },
        "mesh": None if model.mesh is None else dict(model.mesh.shape),
    }


def _plain(value: Any) -> Any:  # noqa: ANN401 - JSON in, JSON out
    """`value` as JSON reads it back, so that the two compare equal."""
    return json.loads(json.dumps(value))


def _require_folders(config: ExtractConfig) -> None:
    """Raise UsageError if this machine cannot write the output or the checkpoint."""
    if config.output_url is not None:
        return
    require_writable("output_dir", config.output_folder)
    if config.checkpointing:
        require_writable("checkpoint_dir", config.checkpoint_folder)


def require_writable(flag: str, folder: Path) -> None:
    """Raise UsageError if `folder` clearly cannot be made or written; makes nothing."""
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if os.path.exists(path))
    if not there.is_dir():
        raise UsageError(f"--{flag} {folder}: {there} is a file; give a folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise UsageError(f"--{flag} {folder}: {there} cannot be written to; give another folder")


def _require_far_ends(config: ExtractConfig, url: str | None) -> None:
    """Raise an InputError if there is no dataset, or the output cannot go to `url`."""
    if config.dataset is not None:
        next(open_records(config, 1))
    if url is not None:
        with closing(open_store(url, Retry(config.upload.upload_retry_seconds))) as store:
            store.stat(FILE_NAME)
