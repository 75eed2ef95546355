"""Zones that are closed for a while, and why: no capacity, no quota, no answer.

The first wait is one poll, each further one twice as long up to twenty; a zone that gave a TPU begins anew. Waits are
not spread at random: creations are named, so clients that come at the same time cannot do each other's work twice.
"""

from dataclasses import dataclass, field

from layertap.errors import LayertapError, QuotaError

_LONGEST_WAIT = 20


@dataclass
class _Closing:
    reason: LayertapError
    wait: float
    until: float


@dataclass
class Closings:
    """Which zones are closed; times are in seconds of any clock that only goes forward."""

    first_wait: float
    _closings: dict[str, _Closing] = field(default_factory=dict)

    def close(self, zone: str, reason: LayertapError, now: float) -> None:
        """Close a zone that has just refused; refusals of one round count once."""
        before = self._closings.get(zone)
        if before and before.until > now:
            return
        wait = min(2 * before.wait, _LONGEST_WAIT * self.first_wait) if before else self.first_wait
        self._closings[zone] = _Closing(reason, wait, now + wait)

    def forget(self, zone: str) -> None:
        """A zone that has just given a TPU, and refused none, is as good as new."""
        self._closings.pop(zone, None)

    def dry(self, now: float) -> set[str]:
        """Zones whose workers may go elsewhere."""
        return {zone for zone in self._closed(now) if not isinstance(self._closings[zone].reason, QuotaError)}

    def full(self, now: float) -> set[str]:
        """Zones whose workers wait, because the project's quota there is used up."""
        return self._closed(now) - self.dry(now)

    def until_next(self, now: float) -> float:
        """Seconds until the first closed zone opens; 0 where none is closed."""
        return min((self._closings[zone].until - now for zone in self._closed(now)), default=0.0)

    @property
    def reasons(self) -> list[str]:
        """What each zone said that refused last time."""
        return [str(self._closings[zone].reason) for zone in sorted(self._closings)]

    def _closed(self, now: float) -> set[str]:
        return {zone for zone, closing in self._closings.items() if closing.until > now}
