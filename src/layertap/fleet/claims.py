"""What stands in a claim, and the object-store names of claims and done-manifests.

A claim is one small JSON object a shard. It goes from nothing to `held`, and from there by its holder's hand to

    committed    the output is named in it; a done-manifest with the same content follows, and the claim goes
    failed       the shard cannot be extracted as things are; it stays until `layertap shards reset`
    nothing      released: the holder was interrupted

or, when the holder has not been heard of for as long as the lease runs, to `held` by another (leases.py).
"""

import json
import operator
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

from layertap.errors import DamageError

State = Literal["held", "committed", "failed"]

CLAIMS = "claims/"
DONE = "done/"


@dataclass(frozen=True)
class Claim:
    """What a claim says."""

    worker: int
    """The id of the worker that holds it."""
    host: str
    """Where that worker runs, for people."""
    nonce: str
    """Of this taking: no two takings share one."""
    attempt: str
    """The folder, below the shard's, that the output goes to; a worker that goes on after a crash keeps it."""
    seconds: float
    """How long the lease runs after each heartbeat."""
    state: State = "held"
    beats: int = 0
    """Heartbeats since it was taken."""
    metrics: Mapping[str, Any] = field(default_factory=dict)
    """How far the holder was at the last heartbeat."""
    lost_by: tuple[str, ...] = ()
    """Who held it before and was not heard of any more, as worker@host."""
    done: Mapping[str, Any] | None = None
    """The done-manifest, once committed."""
    error: str | None = None
    """Why it failed."""

    @property
    def holder(self) -> str:
        """The worker and where it runs."""
        return f"{self.worker}@{self.host}"


def claim_name(shard: str) -> str:
    """Where the claim of a shard lies."""
    return f"{CLAIMS}{shard}.json"


def done_name(shard: str) -> str:
    """Where the done-manifest of a shard lies."""
    return f"{DONE}{shard}.json"


def shard_of(name: str) -> str:
    """The shard that a claim or done-manifest of this name is of."""
    return name.rpartition("/")[2].removesuffix(".json")


def encode_claim(claim: Claim) -> bytes:
    """A claim as it is stored."""
    return json.dumps(asdict(claim), indent=1).encode() + b"\n"


def decode_claim(data: bytes, where: str) -> Claim:
    """The claim in `data`; raises DamageError naming `where`."""
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
        raise DamageError(f"{where}: is no claim ({error!r}); free the shard with layertap shards reset") from error
    return claim


def encode_done(done: Mapping[str, Any]) -> bytes:
    """A done-manifest as it is stored: the same bytes whoever writes it."""
    return json.dumps(done, indent=1, sort_keys=True).encode() + b"\n"
