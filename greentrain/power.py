"""PowerModel: power against the share of a device's peak throughput, per operating point.

Physics: ``P(x) = P_idle + c1·x + c3·x³`` with non-negative coefficients, where x is the share of
the device's peak throughput at that operating point (dynamic CMOS power, a·u·f·V(f)²). ``share_fits``
has the fits that measured points choose from.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import Literal

import msgspec
import numpy as np

from greentrain._checks import require, require_non_negative
from greentrain.errors import UsageError
from greentrain.share_fits import fit_share

__all__ = ["PowerCurve", "PowerModel", "Source", "fit_power_curve", "physical_curve"]

Source = Literal["measured", "modelled"]

_KNOTS = 21
# A factor that no load makes, but milliwatts do.
_SLIP = 150.0
_FALL, _MOST_W = 0.05, 3000.0


class PowerCurve(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Power over throughput share at one operating point, as knots joined by straight lines.

    Attributes:
        point: Name of the operating point.
        share_X: Throughput shares in [0, 1], rising, first 0 and last 1.
        power_w_X: Power at each knot, watts.
        band_w: Half-width of the stated band around the curve, watts (None = not known).
        fit: How the knots were found.
        points_n: Number of measured points behind the curve; 0 for a catalogue figure.
        band_w_X: Half-width of the 95 % band at each knot, watts (None = not known).
        measured_share: Lowest and highest share that was measured (None = not known).
        warnings: What a reader must know, each a sentence that starts with its name.
    """

    point: str
    share_X: tuple[float, ...]
    power_w_X: tuple[float, ...]
    band_w: float | None = None
    fit: str = "catalogue"
    points_n: int = 0
    band_w_X: tuple[float, ...] | None = None
    measured_share: tuple[float, float] | None = None
    warnings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        require(
            len(self.share_X) == len(self.power_w_X) >= 2, "a power curve needs as many watts as shares, two or more"
        )
        rising = all(low < high for low, high in zip(self.share_X, self.share_X[1:], strict=False))
        require(rising and self.share_X[0] == 0.0 and self.share_X[-1] == 1.0, "share_X must rise from 0 to 1")
        for power_w in self.power_w_X:
            require_non_negative(power_w=power_w)
        require_non_negative(band_w=self.band_w)
        if self.band_w_X is not None:
            require(len(self.band_w_X) == len(self.share_X), "a band needs as many watts as shares")
            for band_w in self.band_w_X:
                require_non_negative(band_w=band_w)
        if self.measured_share is not None:
            low, high = self.measured_share
            require(0.0 <= low <= high <= 1.0, "measured_share must be a range within [0, 1]")

    @property
    def idle_w(self) -> float:
        """Power while the device waits at this operating point, watts."""
        return self.power_w_X[0]

    @property
    def busy_w(self) -> float:
        """Power at full throughput of this operating point, watts."""
        return self.power_w_X[-1]

    def power_w(self, share: float) -> float:
        """Power at a throughput share, watts; shares beyond [0, 1] are held at the ends."""
        return _between(self.share_X, self.power_w_X, share)

    def band_at_w(self, share: float) -> float | None:
        """Half-width of the band at a throughput share, watts; None where it is not known."""
        return self.band_w if self.band_w_X is None else _between(self.share_X, self.band_w_X, share)

    def extrapolated(self, share: float) -> bool:
        """Whether a share lies outside what was measured; False where nobody knows what was."""
        return self.measured_share is not None and not self.measured_share[0] <= share <= self.measured_share[1]


class PowerModel(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a device draws, per operating point.

    Attributes:
        idle_w: Power of the device when it is on and takes no part, watts.
        sleep_w: Power when it sleeps, watts (None = it cannot, or not known).
        curves: One curve per operating point.
        source: ``measured`` only when a sensor of this very device gave the figures.
        provenance: Where the figures come from, with year.
    """

    idle_w: float
    curves: tuple[PowerCurve, ...]
    source: Source
    provenance: str
    sleep_w: float | None = None

    def __post_init__(self) -> None:
        require_non_negative(idle_w=self.idle_w, sleep_w=self.sleep_w)
        names = [curve.point for curve in self.curves]
        require(len(names) > 0, "a power model needs at least one curve")
        require(len(set(names)) == len(names), f"operating points {names} must have different names")

    def curve(self, point: str) -> PowerCurve:
        """The curve of an operating point.

        Raises:
            UsageError: The model has no such point.
        """
        for curve in self.curves:
            if curve.point == point:
                return curve
        known = ", ".join(curve.point for curve in self.curves)
        raise UsageError(f"no power curve for operating point {point!r}.", hint=f"Known points: {known}.")


def _between(share_X: tuple[float, ...], value_X: tuple[float, ...], share: float) -> float:
    if share <= 0.0:
        return value_X[0]
    if share >= 1.0:
        return value_X[-1]
    right = bisect_right(share_X, share)
    low, high = share_X[right - 1], share_X[right]
    weight = (share - low) / (high - low)
    return value_X[right - 1] * (1 - weight) + value_X[right] * weight


def physical_curve(*, point: str, idle_w: float, busy_w: float, cubic_share: float, fit: str) -> PowerCurve:
    """A curve ``idle + c1·x + c3·x³`` through two published watts.

    Args:
        point: Name of the operating point.
        idle_w: Power at share 0, watts.
        busy_w: Power at share 1, watts.
        cubic_share: Part of the rise that is cubic, in [0, 1].
        fit: How the figures were found.
    """
    require(busy_w >= idle_w, f"busy_w is {busy_w}, expected at least idle_w ({idle_w})")
    rise_w = busy_w - idle_w
    share_X = tuple(index / (_KNOTS - 1) for index in range(_KNOTS))
    power_w_X = tuple(round(idle_w + rise_w * (1 - cubic_share) * x + rise_w * cubic_share * x**3, 6) for x in share_X)
    return PowerCurve(point=point, share_X=share_X, power_w_X=power_w_X, fit=fit)


def fit_power_curve(*, point: str, share: Sequence[float], power_w: Sequence[float]) -> PowerCurve:
    """Fit power over share: the physical basis, with a Gaussian process, or isotonic, chosen by leave-one-out.

    The band comes from the leave-one-out residuals of the inner points; it is unknown without an inner point.

    Args:
        point: Name of the operating point.
        share: Throughput shares in [0, 1], shape (n,).
        power_w: Measured power at each share, watts, shape (n,).

    Raises:
        UsageError: Fewer than two different shares, a value that is not finite, or one that is wrong by a factor such
            as 1000.
    """
    x_N = np.asarray(share, dtype=np.float64)
    w_N = np.asarray(power_w, dtype=np.float64)
    if x_N.shape != w_N.shape or x_N.ndim != 1 or len(set(share)) < 2:
        raise UsageError(
            f"power curve {point!r}: {len(share)} shares, {len(power_w)} watts; expected two different shares or more.",
            hint="Measure the idle and at least one loaded point.",
        )
    if not (np.isfinite(x_N).all() and np.isfinite(w_N).all()) or (w_N < 0).any() or (x_N < 0).any() or (x_N > 1).any():
        raise UsageError(f"power curve {point!r}: shares must lie in [0, 1] and watts be finite and not negative.")
    _refuse_slips(point, x_N, w_N)
    share_X = tuple(index / (_KNOTS - 1) for index in range(_KNOTS))
    fit = fit_share(x_N, w_N, np.asarray(share_X))
    return PowerCurve(
        point=point,
        share_X=share_X,
        power_w_X=tuple(round(float(watts), 6) for watts in fit.power_w_X),
        band_w=float(np.abs(fit.left_out_w_L).max()) if len(fit.left_out_w_L) else None,
        fit=fit.name,
        points_n=len(share),
        band_w_X=None if fit.band_w_X is None else tuple(round(float(watts), 6) for watts in fit.band_w_X),
        measured_share=(float(x_N.min()), float(x_N.max())),
        warnings=_warnings(point, x_N, w_N),
    )


def _refuse_slips(point: str, x_N: np.ndarray, w_N: np.ndarray) -> None:
    """Loaded points must be of one size; the idle one may be next to nothing, but never far above them."""
    loaded_w = w_N[x_N > x_N.min()]
    for index, watts in enumerate(loaded_w):
        others_w = np.delete(loaded_w, index)
        usual_w = float(np.median(others_w)) if len(others_w) else float(watts)
        if not usual_w / _SLIP <= watts <= usual_w * _SLIP or w_N[x_N == x_N.min()].max() > _SLIP * max(usual_w, watts):
            raise UsageError(
                f"power curve {point!r}: loads of {w_N.min():g} to {w_N.max():g} W; expected less than a factor "
                f"{_SLIP:g} between them, and an idle power below them.",
                hint="Were watts and milliwatts mixed? Correct the unit, or measure again.",
            )


def _warnings(point: str, x_N: np.ndarray, w_N: np.ndarray) -> tuple[str, ...]:
    above_NN = x_N[:, None] > x_N[None, :]
    falls = int((above_NN & (w_N[:, None] < (1 - _FALL) * w_N[None, :])).sum())
    warnings: list[str] = []
    if 2 * falls > int(above_NN.sum()):
        warnings.append(f"falling-power: power falls with the load at {point}; is it the power of this device?")
    if w_N.max() > _MOST_W:
        warnings.append(f"power-unit: {w_N.max():g} W at {point} is much for one device; is it in milliwatts?")
    return tuple(warnings)
