"""The configuration of batches."""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal, get_args

from layertap.core.columns import COLUMNS, FIRST, PREFIX, SINK_FACTOR, SPECIAL
from layertap.core.selection import ANSWER, CELLS, ROLE_NAMES
from layertap.core.taps import Tap
from layertap.errors import UsageError
from layertap.reader.scaling import Normalisation, Scale

Flag = Literal["first", "special", "prefix", "sink", "nonfinite"]
Framework = Literal["numpy", "torch", "jax"]
Dtype = Literal["float32", "float16", "bfloat16"]

_BITS: Mapping[str, int] = MappingProxyType({"first": FIRST, "special": SPECIAL, "prefix": PREFIX})


@dataclass(frozen=True, kw_only=True)
class BatchConfig:
    """How to go through the tokens of a dataset."""

    batch_size: int
    """Tokens per batch, on each rank."""

    taps: tuple[Tap, ...]
    """The activations of each token, in this order."""

    seed: int = 0
    """Decides the order, together with everything that `order` lists."""

    shuffle: bool = True
    """False keeps the dataset's own order."""

    rank: int = 0
    """Which of the `world_size` shares of the tokens."""

    world_size: int = 1
    """How many shares there are. Together they have all tokens, and each token is in one share."""

    exclude: frozenset[Flag] = frozenset()
    """Leave out tokens with any of these flags. "sink" leaves out sinks at any of the taps,
    "nonfinite" tokens with a NaN or an infinity at any of them."""

    include: frozenset[str] = frozenset()
    """Take only tokens that are one of these: cells, answer, or the name of a role. Empty: all."""

    role: frozenset[str] = frozenset()
    """Take only tokens of these roles. With `include`, tokens must satisfy both."""

    columns: tuple[str, ...] = ("token_ids",)
    """The columns that come with the activations."""

    sink_factor: float = SINK_FACTOR
    """With "sink": a sink has a norm over this many times the usual norm of its sample."""

    drop_last: bool = False
    """Leave out what does not fill a batch on every rank, so that all ranks have equally many
    batches."""

    as_: Framework = "numpy"
    """The framework of the activations' arrays."""

    dtype: Dtype | None = None
    """The dtype of the activations; None keeps the stored one."""

    pool_tokens: int = 131_072
    """How many tokens are held in memory and shuffled together."""

    piece_tokens: int = 1024
    """How many consecutive tokens of a shard go into a pool together, if shards can be read in
    parts."""

    inputs: tuple[Tap, ...] = ()
    """With `targets`: the taps in `batch.inputs`, each one of `taps`. Empty: all taps are in
    `batch.activations`."""

    targets: tuple[Tap, ...] = ()
    """The taps in `batch.targets`."""

    single: frozenset[str] = frozenset()
    """Which of inputs and targets was given as one tap, not in a list, and so has no axis of
    taps."""

    sequence: int | None = None
    """Return runs of this many consecutive tokens of a sample instead of single tokens. Runs are
    then shuffled, split between ranks and counted."""

    center: bool = False
    """Subtract the mean of each tap from its activations (reader/scaling.py)."""

    scale: Scale | None = None
    """Then scale each tap to one size."""

    normalisation: Normalisation | None = None
    """The map to apply, instead of a measured one."""

    def __post_init__(self) -> None:
        """Refuse invalid values; raises UsageError."""
        for name in ("batch_size", "world_size", "pool_tokens", "piece_tokens"):
            _require(getattr(self, name) >= 1, f"{name} must be at least 1, not {getattr(self, name)}")
        _require(0 <= self.rank < self.world_size, f"rank {self.rank}: ranks are 0 to {self.world_size - 1}")
        _require(self.seed >= 0, f"seed must not be negative, not {self.seed}")
        _require("token_ids" in self.columns, "columns must include token_ids")
        _require(0 < self.sink_factor < math.inf, f"sink_factor must be positive, not {self.sink_factor}")
        _require(bool(self.taps), "give at least one layer and one site")
        _require(len(set(self.taps)) == len(self.taps), "a layer or site is given twice")
        _require_one_of("exclude", self.exclude, get_args(Flag))
        _require_one_of("include", self.include, (CELLS, ANSWER, *ROLE_NAMES))
        _require_one_of("role", self.role, ROLE_NAMES)
        _require_one_of("columns", self.columns, list(COLUMNS))
        _require_one_of("as_", [self.as_], get_args(Framework))
        _require_one_of("dtype", [] if self.dtype is None else [self.dtype], get_args(Dtype))
        _require_one_of("scale", [] if self.scale is None else [self.scale], get_args(Scale))
        self._require_whole_runs()
        self._require_one_normalisation()

    def _require_whole_runs(self) -> None:
        length = self.sequence
        _require(length is None or length >= 1, f"sequence must be at least 1, not {length}")
        _require(
            length is None or self.batch_size % length == 0,
            f"batch_size counts tokens, and {self.batch_size} is not a multiple of sequence={length}",
        )

    def _require_one_normalisation(self) -> None:
        given = self.normalisation
        if given is None:
            return
        missing = [f"layer {tap.layer} at {tap.site}" for tap in self.taps if tap not in given.maps]
        _require(not missing, f"normalisation: has no map of {', '.join(missing)}")
        _require(
            (given.center or not self.center) and self.scale in (None, given.scale),
            f"normalisation: was made with center={given.center}, scale={given.scale}, but you ask for center="
            f"{self.center}, scale={self.scale}; leave out either these or normalisation",
        )

    @property
    def normalises(self) -> bool:
        """Whether activations are centred or scaled."""
        return self.center or self.scale is not None or self.normalisation is not None

    @property
    def tokens_a_row(self) -> int:
        """How many tokens a row of a batch has: one, or those of a run."""
        return self.sequence or 1

    @property
    def batch_rows(self) -> int:
        """Rows per batch."""
        return self.batch_size // self.tokens_a_row

    @property
    def pool_rows(self) -> int:
        """Rows per pool: whole batches."""
        return max(1, self.pool_tokens // self.batch_size) * self.batch_rows

    @property
    def excluded_bits(self) -> int:
        """The bits of flags of tokens to leave out."""
        return sum(_BITS.get(flag, 0) for flag in self.exclude)

    @property
    def selections(self) -> tuple[tuple[str, ...], ...]:
        """Names of `core.selection`. A token must match one name of every tuple."""
        asked = [[name if name in (CELLS, ANSWER) else f"role:{name}" for name in self.include]]
        asked.append([f"role:{name}" for name in self.role])
        return tuple(tuple(sorted(names)) for names in asked if names)

    @property
    def leaves_out(self) -> bool:
        """Whether some tokens may be left out."""
        return bool(self.exclude or self.selections)

    def order(self) -> dict[str, Any]:
        """Return all settings that decide the order of tokens, the same for all ranks; as JSON."""
        names = ("batch_size", "seed", "shuffle", "world_size", "drop_last", "pool_tokens", "piece_tokens")
        own = {name: getattr(self, name) for name in names}
        if "sink" in self.exclude and self.sink_factor != SINK_FACTOR:
            own["sink_factor"] = self.sink_factor
        own |= {name: sorted(getattr(self, name)) for name in ("include", "role") if getattr(self, name)}
        own |= {} if self.sequence is None else {"sequence": self.sequence}
        return own | {"taps": [list(tap) for tap in self.taps], "exclude": sorted(self.exclude)}


def require_same_order(there: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raise UsageError if a state is from batches in another order."""
    names = [name for name in dict.fromkeys((*now, *there)) if there.get(name) != now.get(name)]
    if names:
        differing = (f"{name}: {there.get(name)} there, {now.get(name)} now" for name in names)
        raise UsageError(
            "the state is from batches in another order; give the same settings, or start without it:\n "
            " " + "\n  ".join(differing)
        )


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise UsageError(message)


def _require_one_of(name: str, given: Collection[str], known: Collection[str]) -> None:
    unknown = sorted(set(given) - set(known))
    _require(not unknown, f"{name}: {', '.join(unknown)} is unknown; give {', '.join(known)}")
