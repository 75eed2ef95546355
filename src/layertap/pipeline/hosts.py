"""Several hosts as one machine: one mesh over all devices, and all hosts run each step together.

Each host reads its own share of the dataset (round robin by task), packs its own windows, writes
its own output folder, and resumes where that folder ends, without knowledge of the others. Hosts
only have to agree on which program runs next. For each window they tell each other how many steps
of each kind they have, and those with fewer add empty ones (`agree_on_steps`). So windows need not
match: after a restart one host may be in its third while another is in its fifth. Finished hosts
run empty steps until every host is finished. A step has the rows of all hosts side by side; no
activation leaves its host.

Hosts started with different settings would run different programs side by side. On some meshes
nobody would notice before reading the output. So they compare their settings first
(`Hosts.require_same`).

What it costs: a few integers exchanged per window (1,024 samples), and the steps by which the
hosts' windows differ.

Why not agree on common windows and a common position instead: hosts commit shards at their own
pace, so a killed slice never has one position. Redoing the work of the fastest to match the slowest
would break "nothing twice".
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from layertap.config.extract import HostsConfig
from layertap.errors import DeviceError, HostsStoppedError, InputError, UsageError
from layertap.pipeline import backend
from layertap.pipeline.packing import Kind, Step
from layertap.pipeline.windows import Window
from layertap.process.supervised import HEARTBEAT_SECONDS
from layertap.shards.manifest import differences

_MEETING_SECONDS = 300
# How long a host that ends in an error waits for the others, before they hear of it. Longer than a
# heartbeat: then a killed host is named as lost, and not the first host that ended because of it.
_PARTING_SECONDS = 2 * HEARTBEAT_SECONDS


@dataclass(frozen=True)
class Hosts:
    """One of the hosts that run one model together."""

    index: int = 0
    count: int = 1

    def name(self, worker: int) -> str:
        """The name of this host's output: `3`, or `3_host_1` if there are several hosts."""
        return str(worker) if self.count == 1 else f"{worker}_host_{self.index}"

    def share(self, machine: int, machines: int) -> tuple[int, int]:
        """The host's share of the dataset, if all hosts have share `machine` of `machines`."""
        return machine * self.count + self.index, machines * self.count

    def gather(self, numbers: Sequence[int]) -> np.ndarray:
        """Every host's `numbers`, [hosts, len(numbers)]; waits for all hosts.

        Raises DeviceError if one is lost.
        """
        if self.count == 1:
            return np.array([numbers])
        try:
            return np.asarray(multihost_utils.process_allgather(np.array(numbers, np.int32)))
        except jax.errors.JaxRuntimeError as error:
            raise DeviceError(f"host {self.index} has lost touch with the others: {error}") from error

    def exchange(self, text: str) -> list[str]:
        """Every host's text, in order; waits for all. Raises DeviceError if one is lost."""
        said = text.encode()
        lengths = self.gather([len(said)])[:, 0]
        everyones = self.gather([*said, *bytes(_padded(int(lengths.max())) - len(said))])
        return [bytes(row[:length].tolist()).decode() for row, length in zip(everyones, lengths, strict=True)]

    def require_same(self, settings: Mapping[str, Any]) -> None:
        """Raise HostsStoppedError on every host if `settings` are not the same on all."""
        first, *others = map(json.loads, self.exchange(json.dumps(settings)))
        for index, theirs in enumerate(others, 1):
            if differing := differences(first, theirs):
                raise HostsStoppedError(
                    f"host {index} (now) was started with other settings than host 0 (there); start the same command on"
                    " every host:\n  " + "\n  ".join(differing)
                )

    def wait_for_all(self) -> None:
        """Wait until all hosts are finished: a host that ends early would seem lost."""
        self.gather([self.index])


def _padded(length: int) -> int:
    """The next power of two: each gathered length compiles a program, which is kept."""
    return 1 << max(length - 1, 0).bit_length()


def join(config: HostsConfig) -> Hosts:
    """Meet the other hosts, and find this host's devices.

    Raises DeviceError if they do not come or there are no devices, UsageError if nothing says who
    the hosts are.
    """
    if config.multihost:
        try:
            jax.distributed.initialize(
                config.coordinator_address,
                config.num_hosts,
                config.host_id,
                initialization_timeout=_MEETING_SECONDS,
                heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
                shutdown_timeout_seconds=_PARTING_SECONDS,
            )
        except ValueError as error:
            raise UsageError(
                f"--multihost: JAX does not find out by itself which hosts there are ({error}); give --num_hosts,"
                " --host_id and --coordinator_address"
            ) from error
        except jax.errors.JaxRuntimeError as error:
            raise DeviceError(
                f"the hosts did not meet: {error}. Start the same command on every host, each with its own --host_id;"
                " --coordinator_address is host 0's"
            ) from error
    backend.start()
    hosts = Hosts(jax.process_index(), jax.process_count())
    hosts.gather([hosts.index])  # a first exchange waits only 30 s (gloo), and nobody is late yet
    return hosts


@dataclass(frozen=True)
class Agreed:
    """The steps that all hosts run next."""

    window: Window | None
    """None on a host that has no window left and only takes part."""
    steps: Sequence[tuple[int, Step]]
    """Each step with the number of the window's samples before it."""


def agree_on_steps(windows: Iterator[Window], kinds: Sequence[Kind], hosts: Hosts) -> Iterator[Agreed]:
    """One host's windows with their remaining steps, plus empty steps to match other hosts.

    `kinds` are all kinds of steps, in the order in which a window runs them. If one host's input is
    wrong, all raise HostsStoppedError, which names it, before that window.
    """
    while True:
        window, trouble = _next_window(windows, hosts)
        own = _steps_left(window)
        counts = [sum(step.kind == kind for _, step in own) for kind in kinds]
        state = _TROUBLED if trouble else _HAS_MORE if window is not None else _DONE
        everyones = hosts.gather([state, *counts])
        if troubled := np.flatnonzero(everyones[:, 0] == _TROUBLED).tolist():
            said = trouble or "its own output says what is wrong with its input"
            raise HostsStoppedError(f"host {', '.join(map(str, troubled))}: {said}") from trouble
        if not everyones[:, 0].any():
            return
        steps: list[tuple[int, Step]] = []
        for kind, most in zip(kinds, everyones[:, 1:].max(axis=0).tolist(), strict=True):
            mine = [(before, step) for before, step in own if step.kind == kind]
            rows, length, prefix = kind
            steps += mine + [(0, Step(rows, length, (), prefix))] * (most - len(mine))
        yield Agreed(window, steps)


_DONE, _HAS_MORE, _TROUBLED = range(3)


def _next_window(windows: Iterator[Window], hosts: Hosts) -> tuple[Window | None, InputError | None]:
    """The next window. Wrong input is returned if other hosts have to hear of it first."""
    try:
        return next(windows, None), None
    except InputError as error:
        if hosts.count == 1:
            raise
        return None, error


def _steps_left(window: Window | None) -> list[tuple[int, Step]]:
    """The steps that hold a sample that is not committed yet."""
    left, emitted = [], 0
    for step in window.steps if window is not None else ():
        before, emitted = emitted, emitted + len(step.placements)
        if window is not None and emitted > window.start.emitted:
            left.append((before, step))
    return left
