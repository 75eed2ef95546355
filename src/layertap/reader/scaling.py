"""Normalisation: one affine map per tap, (x - mean) * factor, known before training begins.

The trained autoencoder is useless without the map. Save `state_dict()` in the checkpoint, or `fold`
the map into the weights, so that they work on the model's own activations. Both are exact up to the
rounding of float64.

`scale` defines the factor, after the tap's mean is subtracted if you asked for that:

    unit_rms    the mean square of a channel is 1, so E||x||^2 = width
    sqrt_d      E||x|| = sqrt(width), as in SAELens ("expected_average_only_in"). For centred
                activations the statistics have only E||x||^2, not the mean norm. Then the root of
                that replaces it, and the factor equals that of unit_rms.

Arrays may be from numpy, JAX or torch. The operations are written the same in all three, so none is
imported here. 16-bit floats become float32 first.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, cast

import numpy as np

from layertap.core.taps import Tap
from layertap.errors import UsageError
from layertap.shards.statistics import TapStatistics

Scale = Literal["unit_rms", "sqrt_d"]

_STATE_VERSION = 1
_CLOSE = 1e-6


class Folded(NamedTuple):
    """The weights of an autoencoder for the model's own activations; float64 numpy arrays."""

    W_enc: np.ndarray
    b_enc: np.ndarray
    W_dec: np.ndarray
    b_dec: np.ndarray


@dataclass(frozen=True, eq=False)
class AffineMap:
    """x -> (x - mean) * factor, for one tap."""

    mean: np.ndarray
    """float64 [width]; zeros if activations are not centred."""
    factor: float
    """1 if activations are not scaled."""

    def apply(self, activations: Any) -> Any:  # noqa: ANN401 - of any framework
        """Normalise activations [..., width]."""
        wide = widen(activations)
        return (wide - constant(self.mean, wide)) * self.factor

    def undo(self, normalised: Any) -> Any:  # noqa: ANN401
        """Undo the normalisation of activations [..., width]."""
        wide = widen(normalised)
        return wide / self.factor + constant(self.mean, wide)

    def fold_encoder(self, weight: Any, bias: Any) -> tuple[np.ndarray, np.ndarray]:  # noqa: ANN401
        """Convert an encoder of normalised activations to one for the model's own activations.

        `weight` is [width, features], `bias` [features]. For a crosscoder, go from tap to tap, each
        with its own weight and the bias returned for the one before.
        """
        scaled = _float64(weight) * self.factor
        return scaled, _float64(bias) - self.mean @ scaled

    def fold_decoder(self, weight: Any, bias: Any) -> tuple[np.ndarray, np.ndarray]:  # noqa: ANN401
        """Convert a decoder to one that returns the model's own activations.

        `weight` is [features, width], `bias` [width].
        """
        return _float64(weight) / self.factor, _float64(bias) / self.factor + self.mean


def fold(
    W_enc: Any,  # noqa: ANN401 - as SAELens names them; of any framework
    b_enc: Any,  # noqa: ANN401
    W_dec: Any,  # noqa: ANN401
    b_dec: Any,  # noqa: ANN401
    inputs: AffineMap,
    targets: AffineMap | None = None,
    *,
    subtracts_b_dec: bool = False,
) -> Folded:
    """Return the weights of the same autoencoder for activations that are not normalised.

    `W_enc` is [width, features], `W_dec` [features, width], as in SAELens; `torch.nn.Linear` has
    both transposed. Feature activations, thresholds and top k stay the same. The decoder vectors
    change in length, all by one factor: if yours must have length 1, normalise instead of folding.
    `targets` is the map of a transcoder's targets; by default that of `inputs`. `subtracts_b_dec`
    is for autoencoders that subtract b_dec from their input before they encode it.

    Raises UsageError if a width does not fit, or if b_dec would be subtracted from inputs of
    another tap.
    """
    targets = inputs if targets is None else targets
    arrays = [_float64(array) for array in (W_enc, b_enc, W_dec, b_dec)]
    features = arrays[1].shape[-1]
    expected = [(len(inputs.mean), features), (features,), (features, len(targets.mean)), (len(targets.mean),)]
    if [array.shape for array in arrays] != expected:
        raise UsageError(f"weights have the shapes {[array.shape for array in arrays]}, not {expected}")
    if subtracts_b_dec and targets is not inputs:
        raise UsageError(
            "subtracts_b_dec: b_dec belongs to the targets, and cannot be subtracted from inputs of another tap"
        )
    weight, bias = inputs.fold_encoder(arrays[0], arrays[1])
    # (x - b_dec') * factor, with b_dec' = b_dec / factor + mean, already equals y - b_dec.
    return Folded(weight, arrays[1] if subtracts_b_dec else bias, *targets.fold_decoder(arrays[2], arrays[3]))


@dataclass(frozen=True, eq=False)
class Normalisation:
    """The maps of all taps of a training run: `normalisation[12, "mlp"]` is one of them."""

    maps: Mapping[Tap, AffineMap]
    center: bool
    """Whether means are subtracted."""
    scale: Scale | None
    measured: str
    """What the numbers were measured on, in words."""

    @staticmethod
    def of(
        statistics: Mapping[Tap, TapStatistics], center: bool, scale: Scale | None, measured: str
    ) -> "Normalisation":
        """Make the maps from the statistics of each tap; UsageError if a tap has no size to scale
        by.
        """
        maps = {tap: _map(tap, own, center, scale) for tap, own in statistics.items()}
        return Normalisation(maps, center, scale, measured)

    def __getitem__(self, tap: tuple[int, str]) -> AffineMap:
        if tap not in self.maps:
            held = ", ".join(f"{own.site}.{own.layer}" for own in self.maps)
            raise UsageError(f"normalisation: has no map of {tap}; it has those of {held}, as (layer, site)")
        return self.maps[cast(Tap, tap)]

    def apply(self, activations: Any, taps: Sequence[Tap]) -> Any:  # noqa: ANN401
        """Normalise activations [..., taps, width]."""
        mapped = widen(activations)
        own = mapped is not activations  # never write to the caller's array (JAX's arrays are immutable)
        means = np.stack([self[tap].mean for tap in taps])
        factors = np.array([[self[tap].factor] for tap in taps])
        if means.any():
            mapped, own = _subtract(mapped, constant(means, mapped), own), True
        return _multiply(mapped, constant(factors, mapped), own) if (factors != 1).any() else mapped

    def summary(self) -> dict[str, Any]:
        """Return what distinguishes it from others, as small JSON."""
        taps = {f"{tap.site}.{tap.layer}": [own.factor, float(np.linalg.norm(own.mean))] for tap, own in self._sorted()}
        return {"center": self.center, "scale": self.scale, "factor_and_norm_of_mean": taps}

    def state_dict(self) -> dict[str, Any]:
        """Return all of it as JSON; about 20 bytes per channel and tap."""
        taps = [
            {"layer": tap.layer, "site": tap.site, "factor": own.factor, "mean": own.mean.tolist()}
            for tap, own in self._sorted()
        ]
        told = {"version": _STATE_VERSION, "center": self.center, "scale": self.scale, "measured": self.measured}
        return told | {"taps": taps}

    @staticmethod
    def from_state_dict(state: Mapping[str, Any]) -> "Normalisation":
        """Read what `state_dict` returned, exact to the last bit; raises UsageError if it is
        invalid.
        """
        if state.get("version") != _STATE_VERSION:
            raise UsageError(
                f"normalisation: has version {state.get('version')}; this Layertap reads version {_STATE_VERSION}"
            )
        try:
            maps = {
                Tap(own["layer"], own["site"]): AffineMap(np.array(own["mean"], np.float64), float(own["factor"]))
                for own in state["taps"]
            }
            return Normalisation(maps, bool(state["center"]), state["scale"], str(state["measured"]))
        except (LookupError, TypeError, ValueError) as error:
            raise UsageError(f"normalisation: its state is damaged: {error!r}") from error

    def _sorted(self) -> list[tuple[Tap, AffineMap]]:
        return sorted(self.maps.items())


def same_summary(one: Mapping[str, Any] | None, other: Mapping[str, Any] | None) -> bool:
    """Return whether two normalisations are equal, except for the rounding of another processor."""
    if one is None or other is None:
        return one is other
    told = [summary["factor_and_norm_of_mean"] for summary in (one, other)]
    return (
        all(one[name] == other[name] for name in ("center", "scale"))
        and told[0].keys() == told[1].keys()
        and all(np.allclose(told[0][tap], told[1][tap], rtol=_CLOSE, atol=0) for tap in told[0])
    )


def factor_of(tap: Tap, scale: Scale | None, width: int, mean_norm: float, mean_square_norm: float) -> float:
    """Return the factor of a tap; raises UsageError if it would not be finite and positive."""
    size = {None: width**0.5, "unit_rms": mean_square_norm**0.5, "sqrt_d": mean_norm}[scale]
    if not 0 < size < np.inf:
        raise UsageError(
            f"layer {tap.layer} at {tap.site}: its activations have the size {size}, so they cannot be scaled; leave"
            " out scale, or the tap"
        )
    return float(width**0.5 / size)


def _map(tap: Tap, statistics: TapStatistics, center: bool, scale: Scale | None) -> AffineMap:
    width = len(statistics.mean)
    if not center:
        own = factor_of(tap, scale, width, statistics.mean_norm, statistics.mean_square_norm)
        return AffineMap(np.zeros(width), own)
    square = float(statistics.m2.sum()) / max(statistics.count, 1)
    return AffineMap(statistics.mean, factor_of(tap, scale, width, square**0.5, square))


def widen(array: Any) -> Any:  # noqa: ANN401 - of any framework
    """Convert `array` to float32 if it is narrower."""
    if hasattr(array, "new_tensor"):  # torch's
        return array.float() if array.element_size() < 4 else array
    return array.astype(np.float32) if array.dtype.itemsize < 4 else array


def constant(values: np.ndarray, like: Any) -> Any:  # noqa: ANN401 - of any framework
    """Convert `values` to the framework, dtype, device and number of axes of `like`."""
    shaped = values.reshape((1,) * (like.ndim - values.ndim) + values.shape)
    if hasattr(like, "new_tensor"):
        return like.new_tensor(shaped)
    return shaped.astype(like.dtype)


def _subtract(array: Any, other: Any, own: bool) -> Any:  # noqa: ANN401
    """Return the difference, in the memory of `array` if that may be written to."""
    if not own:
        return array - other
    array -= other
    return array


def _multiply(array: Any, other: Any, own: bool) -> Any:  # noqa: ANN401
    if not own:
        return array * other
    array *= other
    return array


def _float64(array: Any) -> np.ndarray:  # noqa: ANN401 - of any framework
    if hasattr(array, "detach"):
        array = array.detach().cpu().double()
    return np.asarray(array).astype(np.float64)
