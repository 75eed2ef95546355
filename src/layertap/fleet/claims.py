"""Claims and leases: one worker at a time has a dataset shard, and only one commits it.

A claim is a small JSON object for a shard. Every step is one conditional write of that object:

    take        create the claim. Of any number of racing workers, exactly one succeeds
    beat        replace your own version regularly. If refused, somebody else has the shard
    take over   replace the version of a holder that was silent for the length of its lease
    commit      replace your own version by one that names the output: this decides
    fail        replace your own version by one that says why, until `layertap shards reset`
    settle      write the done-manifest from a committed claim, and delete the claim. Anybody may
    release     delete your own version, or settle it if you were interrupted after the commit

So a worker that has lost its lease, even a microsecond ago, cannot commit, and nobody takes over a
committed claim. Done-manifests are made only from committed claims, so each shard gets one, and it
names the files of one attempt. A holder that dies between commit and done-manifest has committed;
the next worker that sees the claim settles it.

Whether a lease has run out depends on the server's clock, its time of the last write, and the
length that the holder gave the lease. No worker's clock is used. Time decides who works, never who
is right.

Replies can be lost. The store handles that for each call (objects/base.py). If a call gave up, the
claim is read back: it is still ours if it has our nonce, which nobody else writes.

Why not create a claim and a done-manifest separately, as is common? A worker that was suspended
between checking its lease and writing the done-manifest would commit after losing the lease. Our
way needs no extra request.
"""

import json
import operator
import threading
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from types import TracebackType
from typing import Any, Literal, get_args

from layertap.core.strict_json import dump_json
from layertap.errors import DamageError, LayertapError, LeaseLostError
from layertap.objects.base import ObjectStore, StoredBytes

State = Literal["held", "committed", "failed"]

CLAIMS = "claims/"
DONE = "done/"

_CLOCK_STEP = 1.0  # bucket clocks have whole seconds


@dataclass(frozen=True)
class Claim:
    """The content of a claim."""

    worker: int
    """The id of the worker that holds it."""
    host: str
    """Where that worker runs, for people to read."""
    nonce: str
    """Differs each time that a worker takes a shard."""
    attempt: str
    """The output's folder inside the shard's folder; after a crash, a worker resumes it."""
    seconds: float
    """How long the lease lasts after each heartbeat."""
    state: State = "held"
    beats: int = 0
    """Heartbeats since the claim was taken."""
    metrics: Mapping[str, Any] = field(default_factory=dict)
    """The holder's progress at the last heartbeat."""
    lost_by: tuple[str, ...] = ()
    """Earlier holders that fell silent, as worker@host."""
    done: Mapping[str, Any] | None = None
    """The done-manifest, once committed."""
    error: str | None = None
    """Why it failed."""

    @property
    def holder(self) -> str:
        """The worker, and where it runs."""
        return f"{self.worker}@{self.host}"


def claim_name(shard: str) -> str:
    """Return the name of a shard's claim."""
    return f"{CLAIMS}{shard}.json"


def done_name(shard: str) -> str:
    """Return the name of a shard's done-manifest."""
    return f"{DONE}{shard}.json"


def shard_of(name: str) -> str:
    """Return the shard of a claim or done-manifest with this name."""
    return name.rpartition("/")[2].removesuffix(".json")


def encode_claim(claim: Claim) -> bytes:
    """Encode a claim as it is stored."""
    return dump_json(asdict(claim), indent=1).encode() + b"\n"


def decode_claim(data: bytes, where: str) -> Claim:
    """Decode the claim in `data`; raises DamageError, which names `where`."""
    try:
        raw = json.loads(data)
        claim = Claim(**(raw | {"lost_by": tuple(raw["lost_by"])}))
        operator.index(claim.worker)
        if (
            claim.state not in get_args(State)
            or not claim.seconds > 0
            or (claim.state == "committed") != bool(claim.done)
        ):
            raise ValueError(f"state {claim.state!r}")
    except (ValueError, TypeError, KeyError) as error:
        raise DamageError(
            f"{where}: is not a valid claim ({error!r}); free the shard with layertap shards reset"
        ) from error
    return claim


def encode_done(done: Mapping[str, Any]) -> bytes:
    """Encode a done-manifest as it is stored: every worker writes the same bytes."""
    return dump_json(done, indent=1, sort_keys=True).encode() + b"\n"


class Lease:
    """A shard that this worker holds."""

    def __init__(self, store: ObjectStore, shard: str, claim: Claim, version: str) -> None:
        self.shard = shard
        self.claim = claim
        self._store = store
        self._version = version

    def beat(self, metrics: Mapping[str, Any]) -> None:
        """Show that the holder is alive; raises LeaseLostError if another worker has the shard."""
        self._replace(replace(self.claim, beats=self.claim.beats + 1, metrics=metrics))

    def commit(self, done: Mapping[str, Any]) -> None:
        """Make `done` the outcome of this shard; raises LeaseLostError if another worker has it."""
        self._replace(replace(self.claim, state="committed", done=done))
        settle(self._store, self.shard, self.claim, self._version)

    def fail(self, error: str) -> None:
        """Record why the shard cannot be extracted; raises LeaseLostError if another has it."""
        self._replace(replace(self.claim, state="failed", error=error))

    def release(self) -> None:
        """Free the shard for others at once; does nothing if they already have it.

        A committed claim is settled instead. If the claim has changed since this process last saw
        it, it is read back: an interruption can come between a write and its answer.
        """
        if self.claim.state == "held" and self._store.delete_if(claim_name(self.shard), self._version):
            return
        found = read_claim(self._store, self.shard)
        if found is None or found[1].nonce != self.claim.nonce:
            return
        seen, claim = found
        if claim.state == "committed":
            settle(self._store, self.shard, claim, seen.version)
        elif claim.state == "held":
            self._store.delete_if(claim_name(self.shard), seen.version)

    def _replace(self, claim: Claim) -> None:
        data = encode_claim(claim)
        version = self._store.replace_if(claim_name(self.shard), data, self._version)
        if version is None:  # taken over, or an earlier write took effect although it gave up
            version = self._own_version(data)
        self.claim, self._version = claim, version

    def _own_version(self, data: bytes) -> str:
        found = self._store.read(claim_name(self.shard))
        if found is not None and decode_claim(found.data, self.shard).nonce == self.claim.nonce:
            version = self._store.replace_if(claim_name(self.shard), data, found.version)
            if version is not None:
                return version
        raise LeaseLostError(
            f"dataset shard {self.shard}: the lease ran out, and another worker has taken it over;"
            " what this worker extracted from it does not count"
        )


def take(store: ObjectStore, shard: str, claim: Claim) -> Lease | None:
    """Take a shard that nobody has; None if somebody was faster, or the shard is done by now."""
    version = store.create(claim_name(shard), encode_claim(claim))
    if version is None:
        return None
    lease = Lease(store, shard, claim, version)
    with ExitStack() as undo:
        undo.callback(lease.release)  # also if the check fails; otherwise nobody gets the shard until the lease ends
        # A claim is deleted only after its done-manifest is written, so we would see the latter.
        if store.stat(done_name(shard)) is None:
            undo.pop_all()
            return lease
    return None


def take_over(store: ObjectStore, shard: str, seen: StoredBytes, claim: Claim) -> Lease | None:
    """Take a shard whose claim still equals `seen`; None if it changed."""
    version = store.replace_if(claim_name(shard), encode_claim(claim), seen.version)
    return None if version is None else Lease(store, shard, claim, version)


def has_run_out(store: ObjectStore, seen: StoredBytes, claim: Claim) -> bool:
    """Return whether the holder of a claim has been silent for the length of its lease."""
    return store.server_time() - seen.updated > claim.seconds + _CLOCK_STEP


def settle(store: ObjectStore, shard: str, claim: Claim, version: str) -> None:
    """Write the done-manifest of a committed claim, then delete the claim; others may do so too."""
    if claim.done is None:
        raise ValueError(f"{shard} is not committed")
    store.create(done_name(shard), encode_done(claim.done))
    store.delete_if(claim_name(shard), version)


def read_claim(store: ObjectStore, shard: str) -> tuple[StoredBytes, Claim] | None:
    """Read the current claim of a shard; raises DamageError if it is damaged."""
    seen = store.read(claim_name(shard))
    return None if seen is None else (seen, decode_claim(seen.data, f"{store.url}/{claim_name(shard)}"))


class Heartbeat:
    """Beats in a thread during the block; `check` raises once the lease is known to be lost.

    After another failure (such as no network) the next beat tries again. That beat, or the commit,
    shows whether the lease is still valid.
    """

    def __init__(
        self, lease: Lease, metrics: Callable[[], Mapping[str, Any]], troubled: Callable[[LayertapError], None]
    ) -> None:
        self._lease = lease
        self._metrics = metrics
        self._troubled = troubled
        self._lost: LeaseLostError | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)

    def check(self) -> None:
        """Raise LeaseLostError if the lease is known to be lost."""
        if self._lost is not None:
            raise self._lost

    def __enter__(self) -> "Heartbeat":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()

    def _beat(self) -> None:
        while not self._ended.wait(self._lease.claim.seconds / 4):
            try:
                self._lease.beat(self._metrics())
            except LeaseLostError as error:
                self._lost = error
                return
            except LayertapError as error:
                self._troubled(error)
