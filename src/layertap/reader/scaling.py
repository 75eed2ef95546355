"""Normalisation: one affine map a tap, (x - mean) * factor, known before training begins.

The map belongs to the trained autoencoder, which without it is of no use: put `state_dict()` into
the checkpoint, or `fold` the map into the weights, so that they work on activations as the model
has them. Both are exact, but for the rounding of float64.

`scale` says what the factor does, with the tap's mean taken out before if you asked for that:

    unit_rms    the mean square of a channel is 1, so E||x||^2 = width
    sqrt_d      E||x|| = sqrt(width), as SAELens has it ("expected_average_only_in"). The mean norm
                is not known of centred activations, of which the statistics hold E||x||^2 alone.
                There the root of that stands in its place, and the factor is that of unit_rms.

Arrays may be numpy's, JAX's or torch's: what is done to them is spelled alike in all three, so that
none is imported here. 16-bit floats are widened to float32 first, and stay so.
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
    """The weights of an autoencoder that takes and gives activations as the model has them; float64
    arrays of numpy.
    """

    W_enc: np.ndarray
    b_enc: np.ndarray
    W_dec: np.ndarray
    b_dec: np.ndarray


@dataclass(frozen=True, eq=False)
class AffineMap:
    """x -> (x - mean) * factor, for one tap."""

    mean: np.ndarray
    """float64 [width]; zeros where nothing is centred."""
    factor: float
    """1 where nothing is scaled."""

    def apply(self, activations: Any) -> Any:  # noqa: ANN401 - of any framework
        """[..., width], normalised."""
        wide = widen(activations)
        return (wide - constant(self.mean, wide)) * self.factor

    def undo(self, normalised: Any) -> Any:  # noqa: ANN401
        """[..., width], as the model had them."""
        wide = widen(normalised)
        return wide / self.factor + constant(self.mean, wide)

    def fold_encoder(self, weight: Any, bias: Any) -> tuple[np.ndarray, np.ndarray]:  # noqa: ANN401
        """`weight` [width, features] and `bias` [features] of an encoder of normalised activations,
        as those of one that takes activations as the model has them.

        For a crosscoder go from tap to tap, each with its own weight and the bias of the one
        before.
        """
        scaled = _float64(weight) * self.factor
        return scaled, _float64(bias) - self.mean @ scaled

    def fold_decoder(self, weight: Any, bias: Any) -> tuple[np.ndarray, np.ndarray]:  # noqa: ANN401
        """`weight` [features, width] and `bias` [width] of a decoder, so that it gives activations
        as the model has them.
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
    """The weights of the same autoencoder, for activations that are not normalised.

    `W_enc` is [width, features], `W_dec` [features, width], as in SAELens; `torch.nn.Linear` has
    both the other way round. Features keep their activations, and so do thresholds and top k. What
    a feature writes changes its length, by one factor for all of them: where yours have to be of
    length 1, normalise in place of folding. `targets` is the map of what a transcoder predicts;
    left out: that of `inputs`. `subtracts_b_dec` is for autoencoders that take b_dec from their
    input before they encode it.

    Raises UsageError where a width does not fit, or where b_dec is to be taken from inputs of
    another tap.
    """
    targets = inputs if targets is None else targets
    arrays = [_float64(array) for array in (W_enc, b_enc, W_dec, b_dec)]
    features = arrays[1].shape[-1]
    expected = [(len(inputs.mean), features), (features,), (features, len(targets.mean)), (len(targets.mean),)]
    if [array.shape for array in arrays] != expected:
        raise UsageError(f"weights are of shapes {[array.shape for array in arrays]}, should be of {expected}")
    if subtracts_b_dec and targets is not inputs:
        raise UsageError("subtracts_b_dec: b_dec is of the targets, and cannot be taken from inputs of another tap")
    weight, bias = inputs.fold_encoder(arrays[0], arrays[1])
    # (x - b_dec') * factor, with b_dec' = b_dec / factor + mean, is y - b_dec already.
    return Folded(weight, arrays[1] if subtracts_b_dec else bias, *targets.fold_decoder(arrays[2], arrays[3]))


@dataclass(frozen=True, eq=False)
class Normalisation:
    """The maps of all taps of a run of training: `normalisation[12, "mlp"]` is one of them."""

    maps: Mapping[Tap, AffineMap]
    center: bool
    """Whether means are taken out."""
    scale: Scale | None
    measured: str
    """What the numbers are of, in words."""

    @staticmethod
    def of(
        statistics: Mapping[Tap, TapStatistics], center: bool, scale: Scale | None, measured: str
    ) -> "Normalisation":
        """From statistics of each tap; raises UsageError where a tap has no size to scale by."""
        maps = {tap: _map(tap, own, center, scale) for tap, own in statistics.items()}
        return Normalisation(maps, center, scale, measured)

    def __getitem__(self, tap: tuple[int, str]) -> AffineMap:
        if tap not in self.maps:
            held = ", ".join(f"{own.site}.{own.layer}" for own in self.maps)
            raise UsageError(f"normalisation: has no map of {tap}; it has those of {held}, as (layer, site)")
        return self.maps[cast(Tap, tap)]

    def apply(self, activations: Any, taps: Sequence[Tap]) -> Any:  # noqa: ANN401
        """[..., taps, width], normalised."""
        mapped = widen(activations)
        own = mapped is not activations  # what is given is not written to; of JAX's arrays nothing is
        means = np.stack([self[tap].mean for tap in taps])
        factors = np.array([[self[tap].factor] for tap in taps])
        if means.any():
            mapped, own = _subtract(mapped, constant(means, mapped), own), True
        return _multiply(mapped, constant(factors, mapped), own) if (factors != 1).any() else mapped

    def summary(self) -> dict[str, Any]:
        """What tells it from others, as small JSON."""
        taps = {f"{tap.site}.{tap.layer}": [own.factor, float(np.linalg.norm(own.mean))] for tap, own in self._sorted()}
        return {"center": self.center, "scale": self.scale, "factor_and_norm_of_mean": taps}

    def state_dict(self) -> dict[str, Any]:
        """All of it as JSON; some 20 bytes a channel and tap."""
        taps = [
            {"layer": tap.layer, "site": tap.site, "factor": own.factor, "mean": own.mean.tolist()}
            for tap, own in self._sorted()
        ]
        told = {"version": _STATE_VERSION, "center": self.center, "scale": self.scale, "measured": self.measured}
        return told | {"taps": taps}

    @staticmethod
    def from_state_dict(state: Mapping[str, Any]) -> "Normalisation":
        """What `state_dict` was taken of, equal to the last bit; raises UsageError where it is
        none.
        """
        if state.get("version") != _STATE_VERSION:
            raise UsageError(f"normalisation: is of version {state.get('version')}, this is {_STATE_VERSION}")
        try:
            maps = {
                Tap(own["layer"], own["site"]): AffineMap(np.array(own["mean"], np.float64), float(own["factor"]))
                for own in state["taps"]
            }
            return Normalisation(maps, bool(state["center"]), state["scale"], str(state["measured"]))
        except (LookupError, TypeError, ValueError) as error:
            raise UsageError(f"normalisation: its state is garbled: {error!r}") from error

    def _sorted(self) -> list[tuple[Tap, AffineMap]]:
        return sorted(self.maps.items())


def same_summary(one: Mapping[str, Any] | None, other: Mapping[str, Any] | None) -> bool:
    """Whether two normalisations are the same, but for how another processor rounds."""
    if one is None or other is None:
        return one is other
    told = [summary["factor_and_norm_of_mean"] for summary in (one, other)]
    return (
        all(one[name] == other[name] for name in ("center", "scale"))
        and told[0].keys() == told[1].keys()
        and all(np.allclose(told[0][tap], told[1][tap], rtol=_CLOSE, atol=0) for tap in told[0])
    )


def factor_of(tap: Tap, scale: Scale | None, width: int, mean_norm: float, mean_square_norm: float) -> float:
    """What a tap is multiplied with; raises UsageError where that would be nothing finite."""
    size = {None: width**0.5, "unit_rms": mean_square_norm**0.5, "sqrt_d": mean_norm}[scale]
    if not 0 < size < np.inf:
        raise UsageError(
            f"layer {tap.layer} at {tap.site}: its activations are of size {size}, by which nothing can be scaled;"
            " leave out scale, or the tap"
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
    """`array`, in float32 where it was narrower."""
    if hasattr(array, "new_tensor"):  # torch's
        return array.float() if array.element_size() < 4 else array
    return array.astype(np.float32) if array.dtype.itemsize < 4 else array


def constant(values: np.ndarray, like: Any) -> Any:  # noqa: ANN401 - of any framework
    """`values` in the framework, dtype, place and number of axes of `like`."""
    shaped = values.reshape((1,) * (like.ndim - values.ndim) + values.shape)
    if hasattr(like, "new_tensor"):
        return like.new_tensor(shaped)
    return shaped.astype(like.dtype)


def _subtract(array: Any, other: Any, own: bool) -> Any:  # noqa: ANN401
    """The difference, in the memory of `array` where that may be written to."""
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
