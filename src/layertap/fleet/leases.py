"""Leases on dataset shards: of all workers, one at a time has a shard, and one in all commits it.

    take        create the claim: one of any number of racing workers succeeds
    beat        replace one's own version of it, now and then; refused: somebody else has it now
    take over   replace the version of a holder that was not heard of for as long as its lease runs
    commit      replace one's own version by the one that names the output. This is the moment that counts
    settle      write what a committed claim says as the done-manifest, and delete the claim; anybody may
    release     delete one's own version; or settle it, where the holder is interrupted between commit and settling

Every step is one conditional write of one object, the claim, and the commit too: whoever lost the lease, be it a
microsecond ago, cannot commit, and nobody takes over what is committed. A done-manifest is made of a committed claim
alone, so there is one for each shard, and it names one attempt's files. A holder that dies between commit and
done-manifest has committed: the next worker that looks settles it.

Whether a lease has run out is told by the far end's clock and by its time of the last write, and by the length that
the holder gave it. No worker's clock is asked. Time decides only who works, never who is right.

Replies may be lost. The seam settles that for each call (objects/base.py); where a call gave up altogether, the claim
is read back, and is still ours if it bears our nonce, which nobody else writes.

Why not a claim and a done-manifest that is created on its own, as is common: a worker that was stopped between looking
at its lease and creating the manifest would commit after losing the lease. It costs the same number of requests.
"""

import threading
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from types import TracebackType
from typing import Any

from layertap.errors import LayertapError, LeaseLostError
from layertap.fleet.claims import Claim, claim_name, decode_claim, done_name, encode_claim, encode_done
from layertap.objects.base import ObjectStore, StoredBytes

_CLOCK_STEP = 1.0  # bucket clocks tell whole seconds


class Lease:
    """A shard that this worker holds."""

    def __init__(self, store: ObjectStore, shard: str, claim: Claim, version: str) -> None:
        self.shard = shard
        self.claim = claim
        self._store = store
        self._version = version

    def beat(self, metrics: Mapping[str, Any]) -> None:
        """Say that the holder lives; raises LeaseLostError where another one has the shard."""
        self._replace(replace(self.claim, beats=self.claim.beats + 1, metrics=metrics))

    def commit(self, done: Mapping[str, Any]) -> None:
        """Make `done` the outcome of this shard; raises LeaseLostError where another one has it."""
        self._replace(replace(self.claim, state="committed", done=done))
        settle(self._store, self.shard, self.claim, self._version)

    def fail(self, error: str) -> None:
        """Say that this shard cannot be extracted; raises LeaseLostError where another one has it."""
        self._replace(replace(self.claim, state="failed", error=error))

    def release(self) -> None:
        """Let others have the shard at once; nothing happens where they have it already.

        What is committed is settled instead. The claim is read back where it is not as this process last knew it: an
        interruption may have come between a write and its answer.
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
            " what was extracted of it here does not count"
        )


def take(store: ObjectStore, shard: str, claim: Claim) -> Lease | None:
    """Take a shard that nobody has; None where somebody was faster, or it is done meanwhile."""
    version = store.create(claim_name(shard), encode_claim(claim))
    if version is None:
        return None
    lease = Lease(store, shard, claim, version)
    with ExitStack() as undo:
        undo.callback(lease.release)  # also where the look fails: nobody else would have the shard until the lease ends
        # The claim of a shard goes when its done-manifest is there. So whoever takes the place of the claim sees it.
        if store.stat(done_name(shard)) is None:
            undo.pop_all()
            return lease
    return None


def take_over(store: ObjectStore, shard: str, seen: StoredBytes, claim: Claim) -> Lease | None:
    """Take a shard whose claim is still as it was `seen`; None where it is not."""
    version = store.replace_if(claim_name(shard), encode_claim(claim), seen.version)
    return None if version is None else Lease(store, shard, claim, version)


def has_run_out(store: ObjectStore, seen: StoredBytes, claim: Claim) -> bool:
    """Whether the holder of a claim has not been heard of for as long as its lease runs."""
    return store.server_time() - seen.updated > claim.seconds + _CLOCK_STEP


def settle(store: ObjectStore, shard: str, claim: Claim, version: str) -> None:
    """Write the done-manifest of a committed claim, then delete the claim; others may do the same meanwhile."""
    if claim.done is None:
        raise ValueError(f"{shard} is not committed")
    store.create(done_name(shard), encode_done(claim.done))
    store.delete_if(claim_name(shard), version)


def read_claim(store: ObjectStore, shard: str) -> tuple[StoredBytes, Claim] | None:
    """The claim of a shard as it lies there; raises DamageError where it is garbled."""
    seen = store.read(claim_name(shard))
    return None if seen is None else (seen, decode_claim(seen.data, f"{store.url}/{claim_name(shard)}"))


class Heartbeat:
    """Beats in a thread for as long as the block lasts; `check` raises once the lease is known to be lost.

    A beat that fails otherwise (no network, say) is tried again at the next: whether the lease still runs will show
    then, or at the commit.
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
