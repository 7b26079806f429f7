"""Fits of power over the share of a device's peak throughput, and which of them to trust.

Candidates: the physical basis {1, x, x³} with non-negative coefficients (NNLS), the same with a Gaussian process for
what it leaves, and isotonic regression. The one is taken that errs least, both on inner points that were left out and
on those that were not (many processors flatten out at half load, which the physical basis cannot follow); a candidate
that bends more must be better by more. A saturating column beside x³ (√x, min(x, ½), 1 - (1 - x)³, 1 - exp(-4x)) was
tried on measured processors: about the same with three points, worse with four.
Axes: N measured, X asked for, L left out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

__all__ = ["ShareFit", "fit_share"]

# How much smaller the leave-one-out error must be, as a ratio, before a more flexible candidate is taken.
_PRICE = {"nnls{1,x,x3}": 1.0, "gp": 1.1, "isotonic": 1.1}
_LEAST_POINTS = {"nnls{1,x,x3}": 2, "gp": 5, "isotonic": 3}
# Departures from the physical basis persist over this much of the share; noise beside them, as a ratio.
_LENGTH, _NUGGET = 0.25, 0.2
# A few residuals say little about their spread, and may be small by chance: a spread of this much of the rise of power
# counts as that many more.
_ASSUMED, _MIXED = 0.15, 3


class ShareFit(NamedTuple):
    """The chosen fit.

    Attributes:
        name: The candidate.
        power_w_X: Power at the asked-for shares, watts, never falling.
        band_w_X: Half-width of the 95 % band there (None = too few points).
        left_out_w_L: Leave-one-out residuals of the inner points, watts; empty where there is none.
    """

    name: str
    power_w_X: np.ndarray
    band_w_X: np.ndarray | None
    left_out_w_L: np.ndarray


_Candidate = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


def fit_share(x_N: np.ndarray, w_N: np.ndarray, x_X: np.ndarray) -> ShareFit:
    """Fit power over share.

    Args:
        x_N: Measured shares, at least two different ones.
        w_N: Power there, watts.
        x_X: Shares that are asked for.
    """
    candidates: dict[str, _Candidate] = {"nnls{1,x,x3}": _physical, "gp": _gp, "isotonic": _isotonic}
    distinct = len(np.unique(x_N))
    best: tuple[float, str, np.ndarray] | None = None
    for name, candidate in candidates.items():
        if distinct < _LEAST_POINTS[name]:
            continue
        left_out_w_L = _left_out_w(candidate, x_N, w_N)
        error = 0.0
        if len(left_out_w_L):
            missed_w = float(np.abs(candidate(x_N, w_N, x_N) - w_N).mean())
            error = _PRICE[name] * float(np.abs(left_out_w_L).mean()) + missed_w
        if best is None or error < best[0] - 1e-12:
            best = (error, name, left_out_w_L)
    assert best is not None
    _, name, left_out_w_L = best
    power_w_X = np.maximum.accumulate(np.maximum(candidates[name](x_N, w_N, x_X), 0.0))
    return ShareFit(name, power_w_X, _band_w(x_N, w_N, left_out_w_L, x_X), left_out_w_L)


def _physical(x_N: np.ndarray, w_N: np.ndarray, x_X: np.ndarray) -> np.ndarray:
    from scipy.optimize import nnls

    coefficient_C, _ = nnls(_basis(x_N), w_N)
    return _basis(x_X) @ coefficient_C


def _basis(x_N: np.ndarray) -> np.ndarray:
    return np.stack([np.ones_like(x_N), x_N, x_N**3], axis=1)


def _gp(x_N: np.ndarray, w_N: np.ndarray, x_X: np.ndarray) -> np.ndarray:
    left_w_N = w_N - _physical(x_N, w_N, x_N)
    gain_NX = np.linalg.solve(_kernel(x_N, x_N) + _NUGGET**2 * np.eye(len(x_N)), _kernel(x_N, x_X))
    return _physical(x_N, w_N, x_X) + left_w_N @ gain_NX


def _isotonic(x_N: np.ndarray, w_N: np.ndarray, x_X: np.ndarray) -> np.ndarray:
    from scipy.interpolate import PchipInterpolator
    from scipy.optimize import isotonic_regression

    x_D, back_N, count_D = np.unique(x_N, return_inverse=True, return_counts=True)
    mean_w_D = np.bincount(back_N, weights=w_N) / count_D
    w_D = isotonic_regression(mean_w_D, weights=count_D.astype(float)).x
    return np.asarray(PchipInterpolator(x_D, w_D)(np.clip(x_X, x_D[0], x_D[-1])))


def _left_out_w(candidate: _Candidate, x_N: np.ndarray, w_N: np.ndarray) -> np.ndarray:
    left_out_w: list[float] = []
    for index in _inner(x_N):
        kept_x_N, kept_w_N = np.delete(x_N, index), np.delete(w_N, index)
        left_out_w.append(float(candidate(kept_x_N, kept_w_N, x_N[index : index + 1])[0] - w_N[index]))
    return np.asarray(left_out_w)


def _inner(x_N: np.ndarray) -> list[int]:
    """Points whose loss leaves the measured range as it is."""
    low, high = x_N.min(), x_N.max()
    kept = [np.delete(x_N, index) for index in range(len(x_N))]
    return [index for index, rest in enumerate(kept) if len(rest) > 1 and rest.min() == low and rest.max() == high]


def _band_w(x_N: np.ndarray, w_N: np.ndarray, left_out_w_L: np.ndarray, x_X: np.ndarray) -> np.ndarray | None:
    """Wide where no point is near: a Gaussian process's deviation, scaled to the leave-one-out residuals.

    A scaled inverse chi-squared prior of the variance makes the band Student's (Gelman et al., Bayesian Data Analysis,
    3rd edition, section 3.2).
    """
    from scipy.stats import t

    if not len(left_out_w_L):
        return None
    sd_L = np.asarray([_sd(np.delete(x_N, index), x_N[index : index + 1])[0] for index in _inner(x_N)])
    freedom = _MIXED + len(left_out_w_L)
    assumed_w = _ASSUMED * float(np.ptp(w_N))
    scale_w = float(np.sqrt((_MIXED * assumed_w**2 + ((left_out_w_L / sd_L) ** 2).sum()) / freedom))
    return float(t.ppf(0.975, freedom)) * scale_w * _sd(x_N, x_X)


def _sd(x_N: np.ndarray, x_X: np.ndarray) -> np.ndarray:
    gain_NX = np.linalg.solve(_kernel(x_N, x_N) + _NUGGET**2 * np.eye(len(x_N)), _kernel(x_N, x_X))
    return np.sqrt(np.maximum(1.0 - (gain_NX * _kernel(x_N, x_X)).sum(axis=0), 0.0) + _NUGGET**2)


def _kernel(a_A: np.ndarray, b_B: np.ndarray) -> np.ndarray:
    distance_AB = np.abs(a_A[:, None] - b_B[None, :]) * (np.sqrt(3.0) / _LENGTH)
    return (1.0 + distance_AB) * np.exp(-distance_AB)
