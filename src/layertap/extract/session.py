"""An opened model, and the session that keeps its weights and programs between runs.

`OpenedModel` is all that decides what the device computes for given rows of tokens. It knows of no
prompts and of no output, and no weight is read when it is made. A worker extracts many dataset
shards with the same one, so loading weights and compiling once is enough: a `Session` uses what it
kept as long as it is given an equal `OpenedModel`, and replaces it otherwise.
"""

import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import jax
import numpy as np
from jax.sharding import Mesh

from layertap.core.taps import Tap, layers_to_run
from layertap.extract import backend
from layertap.extract.hosts import Hosts
from layertap.extract.step import StepProgram, plan_for, transfer_dtype
from layertap.model import weights
from layertap.model.checkpoint import Checkpoint
from layertap.model.decoder import Decoder
from layertap.model.mesh import auto_shape, make_mesh, parse_mesh, weight_bytes

_ALONE = Hosts()


@dataclass(frozen=True)
class OpenedModel:
    """A checkpoint with the taps to read, and the way it runs."""

    checkpoint: Checkpoint
    taps: tuple[Tap, ...]
    compute_dtype: np.dtype
    """Operands of matrix products."""
    capture_dtype: np.dtype
    """What activations are rounded to on the device."""
    platform: str
    """`cpu`, `gpu` or `tpu`."""
    mesh: Mesh | None = None
    """The devices that share rows and weights; None where there is one."""
    hosts: Hosts = _ALONE
    """The hosts that the devices of the mesh belong to."""

    @property
    def num_layers(self) -> int:
        """How many layers are loaded and run."""
        return layers_to_run(self.taps)

    @property
    def devices(self) -> int:
        """How many devices of this host share the rows of its steps."""
        return 1 if self.mesh is None else self.mesh.size // self.hosts.count


def open_model(
    checkpoint: Checkpoint,
    taps: tuple[Tap, ...],
    compute_dtype: np.dtype,
    storage_dtype: np.dtype,
    mesh: str = "auto",
    hosts: Hosts = _ALONE,
) -> OpenedModel:
    """Decide how the model runs on the devices that JAX has found.

    Raises UsageError where `mesh` does not fit them, or does not fit the model.
    """
    devices = jax.devices()
    if mesh == "auto":
        abstract = weights.abstract_model(checkpoint.config, layers_to_run(taps), compute_dtype)
        shape = auto_shape(len(devices), weight_bytes(abstract), backend.device_bytes())
    else:
        shape = parse_mesh(mesh)
    made = make_mesh(shape, devices)
    return OpenedModel(
        checkpoint=checkpoint,
        taps=taps,
        compute_dtype=compute_dtype,
        capture_dtype=transfer_dtype(compute_dtype, storage_dtype),
        platform=backend.platform(),
        mesh=None if made.size == 1 else made,
        hosts=hosts,
    )


class Session:
    """Weights and programs of the last model. Close it, or its threads wait for ever."""

    def __init__(self) -> None:
        self._opened: OpenedModel | None = None
        self._program: StepProgram | None = None
        self._weights: Decoder | None = None

    def program(self, opened: OpenedModel) -> StepProgram:
        """The programs for `opened`; nothing is compiled yet where they are new."""
        if self._program is None or opened != self._opened:
            self.close()
            abstract = weights.abstract_model(opened.checkpoint.config, opened.num_layers, opened.compute_dtype)
            plan = plan_for(opened.platform, opened.capture_dtype, opened.mesh)
            self._program = StepProgram(abstract, opened.taps, plan)
            self._weights, self._opened = None, opened
        return self._program

    @contextmanager
    def loading(self, opened: OpenedModel) -> Iterator[Future[Decoder]]:
        """The weights for the last `program`; a thread reads them while the block runs.

        A block that ends early (a bad task, Ctrl-C) waits for the tensor that is being read, and
        not for the rest.
        """
        abandoned = threading.Event()
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="loading") as pool:
            try:
                yield pool.submit(self._load, opened, abandoned)
            finally:
                abandoned.set()

    def _load(self, opened: OpenedModel, abandoned: threading.Event) -> Decoder:
        if self._weights is None:
            needs = opened.checkpoint, opened.num_layers, opened.compute_dtype, opened.mesh
            self._weights = weights.load(*needs, abandoned)
        return self._weights

    def close(self) -> None:
        """End the threads that compile."""
        if self._program is not None:
            self._program.close()
