"""Claims for tests."""

from typing import Any

from layertap.fleet.claims import Claim


def claim(worker: int = 0, **more: Any) -> Claim:
    """Return a claim of this worker, with its own nonce."""
    fields = {"host": "here", "nonce": f"nonce{worker}", "attempt": f"attempt{worker}", "seconds": 120.0}
    return Claim(**({"worker": worker} | fields | more))
