"""Model and compiled programs, kept from one run to the next.

A worker extracts many dataset shards with the same settings; loading weights and compiling once is then enough. What
was kept is used again only where everything that it depends on is the same, and made anew elsewhere.
"""

import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

from layertap.extract import backend
from layertap.extract.setup import Setup
from layertap.extract.step import StepProgram, plan_for, transfer_dtype
from layertap.model import weights
from layertap.model.qwen2 import Qwen2


class Session:
    """The model and the programs of the last run; to be closed, or its threads would wait for programs for good."""

    def __init__(self) -> None:
        self._made_for: object = None
        self._program: StepProgram | None = None
        self._model: Qwen2 | None = None

    def program(self, setup: Setup) -> StepProgram:
        """The programs for `setup`; nothing is compiled yet where they are new."""
        needs = (setup.checkpoint, setup.taps, setup.compute_dtype, setup.shard_format.dtype, setup.mesh)
        if self._program is None or needs != self._made_for:
            self.close()
            model = weights.abstract_model(setup.checkpoint.config, setup.num_layers, setup.compute_dtype)
            capture_dtype = transfer_dtype(setup.compute_dtype, setup.shard_format.dtype)
            self._program = StepProgram(model, setup.taps, plan_for(backend.platform(), capture_dtype, setup.mesh))
            self._model, self._made_for = None, needs
        return self._program

    def model(self, setup: Setup, abandoned: threading.Event | None = None) -> Qwen2:
        """The model for `setup`, whose `program` was asked for before; read from disk where it is new.

        Raises CancelledError where `abandoned` was set before all of it was read.
        """
        if self._model is None:
            needs = setup.checkpoint, setup.num_layers, setup.compute_dtype, setup.mesh
            self._model = weights.load(*needs, abandoned)
        return self._model

    @contextmanager
    def loading(self, setup: Setup) -> Iterator[Future[Qwen2]]:
        """The same, read by a thread while the block runs.

        A block that ends early (a bad task, Ctrl-C) waits for the parameters that are being read, not for the rest.
        """
        abandoned = threading.Event()
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="loading") as pool:
            try:
                yield pool.submit(self.model, setup, abandoned)
            finally:
                abandoned.set()

    def close(self) -> None:
        """End the threads that compile."""
        if self._program is not None:
            self._program.close()
