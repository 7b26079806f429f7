"""PowerModel: power against the share of a device's peak throughput, per operating point.

Physics: ``P(x) = P_idle + c1·x + c3·x³`` with non-negative coefficients, where x is the share of
the device's peak throughput at that operating point (dynamic CMOS power, a·u·f·V(f)²).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import Literal

import msgspec
import numpy as np

from greentrain._checks import require, require_non_negative
from greentrain.errors import UsageError

__all__ = ["PowerCurve", "PowerModel", "Source", "fit_power_curve", "physical_curve"]

Source = Literal["measured", "modelled"]

_KNOTS = 21


class PowerCurve(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Power over throughput share at one operating point, as knots joined by straight lines.

    Attributes:
        point: Name of the operating point.
        share_X: Throughput shares in [0, 1], rising, first 0 and last 1.
        power_w_X: Power at each knot, watts.
        band_w: Half-width of the stated band around the curve, watts (None = not known).
        fit: How the knots were found.
        points_n: Number of measured points behind the curve; 0 for a catalogue figure.
    """

    point: str
    share_X: tuple[float, ...]
    power_w_X: tuple[float, ...]
    band_w: float | None = None
    fit: str = "catalogue"
    points_n: int = 0

    def __post_init__(self) -> None:
        require(
            len(self.share_X) == len(self.power_w_X) >= 2, "a power curve needs as many watts as shares, two or more"
        )
        rising = all(low < high for low, high in zip(self.share_X, self.share_X[1:], strict=False))
        require(rising and self.share_X[0] == 0.0 and self.share_X[-1] == 1.0, "share_X must rise from 0 to 1")
        for power_w in self.power_w_X:
            require_non_negative(power_w=power_w)
        require_non_negative(band_w=self.band_w)

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
        if share <= 0.0:
            return self.power_w_X[0]
        if share >= 1.0:
            return self.power_w_X[-1]
        right = bisect_right(self.share_X, share)
        low, high = self.share_X[right - 1], self.share_X[right]
        weight = (share - low) / (high - low)
        return self.power_w_X[right - 1] * (1 - weight) + self.power_w_X[right] * weight


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
    return _sampled(point, (idle_w, rise_w * (1 - cubic_share), rise_w * cubic_share), band_w=None, fit=fit, points_n=0)


def fit_power_curve(*, point: str, share: Sequence[float], power_w: Sequence[float]) -> PowerCurve:
    """Fit the physical basis {1, x, x³} with non-negative coefficients (NNLS).

    The band is the largest leave-one-out residual from three points on, and unknown below.

    Args:
        point: Name of the operating point.
        share: Throughput shares in [0, 1], shape (n,).
        power_w: Measured power at each share, watts, shape (n,).

    Raises:
        UsageError: Fewer than two different shares, or a value that is not finite.
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
    band_w = None
    if len(share) >= 3:
        residuals_w = [_left_out_residual_w(x_N, w_N, left_out) for left_out in range(len(share))]
        band_w = max(residuals_w)
    return _sampled(point, _solve(x_N, w_N), band_w=band_w, fit="nnls{1,x,x3}", points_n=len(share))


def _left_out_residual_w(x_N: np.ndarray, w_N: np.ndarray, left_out: int) -> float:
    keep = np.arange(len(x_N)) != left_out
    c0, c1, c3 = _solve(x_N[keep], w_N[keep])
    x = float(x_N[left_out])
    return abs(c0 + c1 * x + c3 * x**3 - float(w_N[left_out]))


def _solve(x_N: np.ndarray, w_N: np.ndarray) -> tuple[float, float, float]:
    from scipy.optimize import nnls

    basis_NC = np.stack([np.ones_like(x_N), x_N, x_N**3], axis=1)
    coefficients, _ = nnls(basis_NC, w_N)
    return float(coefficients[0]), float(coefficients[1]), float(coefficients[2])


def _sampled(
    point: str, coefficients: tuple[float, float, float], *, band_w: float | None, fit: str, points_n: int
) -> PowerCurve:
    c0, c1, c3 = coefficients
    share_X = tuple(index / (_KNOTS - 1) for index in range(_KNOTS))
    power_w_X = tuple(round(c0 + c1 * x + c3 * x**3, 6) for x in share_X)
    return PowerCurve(point=point, share_X=share_X, power_w_X=power_w_X, band_w=band_w, fit=fit, points_n=points_n)
