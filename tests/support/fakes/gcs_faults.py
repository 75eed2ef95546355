"""What may go wrong between a client and the bucket, on demand; and a note of every request.

A fault strikes requests of its `operation` on objects whose name ends in `name`, `times` times.
Operations: `insert` (one request), `start`, `chunk` and `progress` (a resumable upload), `stat`,
`media`, `list`, `delete`, `bucket`; `*` stands for any.

    refuse     answered with `status`, nothing happens
    lose       it takes effect, then is answered with `status`: the client cannot know
    reset      the connection is reset in the middle of the body, sent or received; nothing happens
    vanish     it takes effect, then the connection is reset before the answer
    truncate   the answer's body ends early, under the length of the whole
    corrupt    a byte is flipped on its way: of what is stored, or of what is read
    slow       the answer comes `seconds` late
    call       `action` is called before it takes effect; where it returns True, the request is lost
    call_after `action` is called after it took effect, before the answer
"""

import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

Kind = Literal["refuse", "lose", "reset", "vanish", "truncate", "corrupt", "slow", "call", "call_after"]


@dataclass
class Fault:
    """One thing that goes wrong, a number of times."""

    kind: Kind
    operation: str = "*"
    name: str = ""
    times: int = 1
    status: int = 503
    seconds: float = 0.0
    action: Callable[[], object] = lambda: None


@dataclass(frozen=True)
class Request:
    """A request and its answer; status 0 if no answer was sent."""

    operation: str
    name: str
    query: dict[str, str]
    size: int
    status: int
    fault: str


@dataclass
class Faults:
    """The planned faults, which happen in the order in which they were planned; and the log."""

    planned: list[Fault] = field(default_factory=list)
    log: list[Request] = field(default_factory=list)
    storm: float = 0.0
    """The share of all requests that are struck by chance, by a fault that a client should survive.
    """
    seed: int = 0

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._chance = random.Random(self.seed)

    def plan(self, kind: Kind, operation: str = "*", name: str = "", **more: object) -> Fault:
        """Let this happen to the next request that matches it."""
        fault = Fault(kind, operation, name, **more)  # type: ignore[arg-type]
        self.planned.append(fault)
        return fault

    def strike(self, operation: str, name: str) -> Fault | None:
        """Return the fault that happens to this request."""
        with self._lock:
            for fault in self.planned:
                if fault.operation in ("*", operation) and name.endswith(fault.name):
                    fault.times -= 1
                    if fault.times <= 0:
                        self.planned.remove(fault)
                    return fault
            if self._chance.random() < self.storm:
                kind: Kind = self._chance.choice(("refuse", "lose", "reset", "vanish", "truncate"))
                return Fault(kind, status=self._chance.choice((429, 500, 502, 503)))
            return None

    def note(self, request: Request) -> None:
        """Record a request."""
        with self._lock:
            self.log.append(request)

    def count(self, operation: str, name: str = "") -> int:
        """How many requests of that kind came."""
        with self._lock:
            return sum(entry.operation == operation and entry.name.endswith(name) for entry in self.log)


def wait_for(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    """Poll until `condition` holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.005)
