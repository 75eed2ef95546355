"""An opened model, and the session that keeps its weights and programs between runs.

`OpenedModel` is all that decides what the device computes for given rows of tokens. It knows
nothing of prompts or output, and no weight is read to make it. A worker extracts many dataset
shards with the same one, and a notebook reads one model at other taps again and again. So a
`Session` keeps the weights, and the programs of the last few taps.
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
from layertap.model import weights
from layertap.model.checkpoint import Checkpoint
from layertap.model.decoder import Decoder
from layertap.model.mesh import auto_shape, make_mesh, parse_mesh, weight_bytes
from layertap.pipeline import backend
from layertap.pipeline.hosts import Hosts
from layertap.pipeline.step import StepProgram, plan_for, transfer_dtype

_ALONE = Hosts()
_PROGRAMS = 4


@dataclass(frozen=True)
class OpenedModel:
    """A checkpoint with the taps to read, and the way it runs."""

    checkpoint: Checkpoint
    taps: tuple[Tap, ...]
    compute_dtype: np.dtype
    """The dtype of operands of matrix products."""
    capture_dtype: np.dtype
    """The dtype to which the device rounds activations."""
    platform: str
    """`cpu`, `gpu` or `tpu`."""
    mesh: Mesh | None = None
    """The devices that share rows and weights; None if there is one."""
    hosts: Hosts = _ALONE
    """The hosts that the devices of the mesh belong to."""
    stays: bool = False
    """Whether activations stay on the device (staying.py)."""

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

    Raises UsageError if `mesh` does not fit them, or does not fit the model.
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
    """Weights, and the programs of the last models that you asked for.

    The weights of one model are kept. They also serve other taps, if these need no layer that is
    not loaded. Close a session, or its threads wait for ever.
    """

    def __init__(self) -> None:
        self._programs: list[tuple[OpenedModel, StepProgram]] = []
        self._loaded: OpenedModel | None = None
        self._weights: Decoder | None = None
        self._lock = threading.Lock()

    def program(self, opened: OpenedModel) -> StepProgram:
        """The programs for `opened`; if they are new, nothing is compiled yet."""
        with self._lock:
            found = next((program for key, program in self._programs if key == opened), None)
            if found is None:
                abstract = weights.abstract_model(opened.checkpoint.config, opened.num_layers, opened.compute_dtype)
                plan = plan_for(opened.platform, opened.capture_dtype, opened.mesh)
                found = StepProgram(abstract, opened.taps, plan, stays=opened.stays)
            self._programs = [(key, program) for key, program in self._programs if program is not found]
            self._programs.append((opened, found))
            for _, old in self._programs[:-_PROGRAMS]:
                old.close()
            del self._programs[:-_PROGRAMS]
            return found

    @contextmanager
    def loading(self, opened: OpenedModel) -> Iterator[Future[Decoder]]:
        """The weights for `opened`; a thread reads them while the block runs.

        A block that ends early (a bad task, Ctrl-C) waits only for the tensor that is being read.
        """
        abandoned = threading.Event()
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="loading") as pool:
            try:
                yield pool.submit(self._load, opened, abandoned)
            finally:
                abandoned.set()

    def _load(self, opened: OpenedModel, abandoned: threading.Event) -> Decoder:
        needs = opened.checkpoint, opened.num_layers, opened.compute_dtype, opened.mesh
        with self._lock:
            if self._weights is None or not _serves(self._loaded, opened):
                self._weights = None  # free them before the next ones come
                self._weights, self._loaded = weights.load(*needs, abandoned), opened
            return weights.first_layers(self._weights, opened.checkpoint.config, opened.num_layers)

    def close(self) -> None:
        """End the threads that compile."""
        for _, program in self._programs:
            program.close()


def _serves(loaded: OpenedModel | None, wanted: OpenedModel) -> bool:
    """Whether the weights of one model include those of another."""
    return loaded is not None and wanted.num_layers <= loaded.num_layers and _decides(loaded) == _decides(wanted)


def _decides(opened: OpenedModel) -> tuple[object, ...]:
    """What decides the weights of a layer, and where they are."""
    return opened.checkpoint, opened.compute_dtype, opened.mesh
