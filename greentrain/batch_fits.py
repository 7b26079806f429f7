"""Seconds or bytes over the micro-batch size: what lies between the measured sizes, and how sure that is.

Candidates: affine (a launch cost and a cost per sample, both non-negative; NNLS on relative errors), straight lines
between the measured sizes, and the same through values that never fall (isotonic regression). The one is chosen that
errs least, both at inner sizes that were left out and at those that were not. Axes: B batch sizes, L left out.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from greentrain._checks import require
from greentrain.errors import UsageError

__all__ = ["BatchFit", "fit_batch", "interpolate_batch_s"]

# How much smaller the error must be, as a ratio, before a candidate that bends more is taken.
_PRICE = {"affine": 1.0, "monotone": 1.1, "piecewise": 1.1}
# A small sample of residuals says little about their spread: it counts as this many more.
_MIXED = 3


@dataclass(frozen=True, kw_only=True)
class BatchFit:
    """A quantity over the batch size.

    Attributes:
        name: The chosen candidate.
        batch_B: Measured sizes, rising.
        value_B: The fitted value at each.
        loo_ratio: Median leave-one-out error at the inner sizes, as a ratio (None = fewer than three sizes).
        band_ratio: Half-width of the 95 % band, as a ratio (None = fewer than three sizes).
    """

    name: str
    batch_B: tuple[int, ...]
    value_B: tuple[float, ...]
    loo_ratio: float | None
    band_ratio: float | None

    def value(self, batch: int) -> float:
        """The value at a batch size; beyond the measured sizes the end slope is held."""
        return interpolate_batch_s(self.batch_B, self.value_B, batch)

    def extrapolated(self, batch: int) -> bool:
        """Whether a batch size lies outside the measured ones."""
        return not self.batch_B[0] <= batch <= self.batch_B[-1]


def fit_batch(batch_B: tuple[int, ...], value_B: tuple[float, ...]) -> BatchFit:
    """Fit seconds or bytes over the batch size.

    Args:
        batch_B: Batch sizes, rising from at least 1.
        value_B: The value at each, finite and above 0.

    Raises:
        UsageError: A value is not finite or not above 0.
    """
    rising = all(low < high for low, high in pairwise(batch_B))
    require(len(batch_B) == len(value_B) > 0 and batch_B[0] >= 1 and rising, "batch_B must rise, one value to each")
    v_B = np.asarray(value_B, dtype=np.float64)
    if not (np.isfinite(v_B).all() and (v_B > 0).all()):
        raise UsageError(
            f"values {list(value_B)} over batch sizes {list(batch_B)}; expected finite numbers above 0.",
            hint="Measure the batch size again, or leave it out.",
        )
    left_out = {name: _left_out_ratios(fit, batch_B, v_B) for name, fit in _CANDIDATES.items()}
    inner = len(batch_B) > 2
    missed = {name: float(np.abs(fit(batch_B, v_B) / v_B - 1).mean()) for name, fit in _CANDIDATES.items()}
    name = "piecewise"
    if inner:
        name = min(_PRICE, key=lambda one: round(_PRICE[one] * float(left_out[one].mean()) + missed[one], 6))
    ratio_L = left_out[name]
    return BatchFit(
        name=name,
        batch_B=batch_B,
        value_B=tuple(float(value) for value in _CANDIDATES[name](batch_B, v_B)),
        loo_ratio=float(np.median(ratio_L)) if inner else None,
        band_ratio=_band_ratio(ratio_L) if inner else None,
    )


def _left_out_ratios(fit: _Candidate, batch_B: tuple[int, ...], v_B: np.ndarray) -> np.ndarray:
    ratios: list[float] = []
    for index in range(1, len(batch_B) - 1):
        rest_B = batch_B[:index] + batch_B[index + 1 :]
        values = tuple(float(value) for value in fit(rest_B, np.delete(v_B, index)))
        ratios.append(abs(interpolate_batch_s(rest_B, values, batch_B[index]) / float(v_B[index]) - 1))
    return np.asarray(ratios)


def _band_ratio(ratio_L: np.ndarray) -> float:
    from scipy.stats import t

    return float(t.ppf(0.975, len(ratio_L) + _MIXED) * np.sqrt((ratio_L**2).mean()))


def _affine(batch_B: tuple[int, ...], v_B: np.ndarray) -> np.ndarray:
    from scipy.optimize import nnls

    basis_BC = np.stack([np.ones(len(batch_B)), np.asarray(batch_B, dtype=np.float64)], axis=1)
    coefficient_C, _ = nnls(basis_BC / v_B[:, None], np.ones(len(batch_B)))
    return basis_BC @ coefficient_C


def _monotone(batch_B: tuple[int, ...], v_B: np.ndarray) -> np.ndarray:
    from scipy.optimize import isotonic_regression

    del batch_B
    return np.asarray(isotonic_regression(v_B).x)


def _piecewise(batch_B: tuple[int, ...], v_B: np.ndarray) -> np.ndarray:
    del batch_B
    return v_B


_Candidate = Callable[[tuple[int, ...], np.ndarray], np.ndarray]
_CANDIDATES: dict[str, _Candidate] = {"affine": _affine, "monotone": _monotone, "piecewise": _piecewise}


def interpolate_batch_s(batch_B: tuple[int, ...], time_s_B: tuple[float, ...], batch: float) -> float:
    """Seconds at a batch size: straight lines between measured sizes, the end slopes held beyond them.

    With a single measured size the time is proportional to the batch.
    """
    if batch <= 0:
        return 0.0
    if len(batch_B) == 1:
        return time_s_B[0] * batch / batch_B[0]
    right = min(max(bisect_left(batch_B, batch), 1), len(batch_B) - 1)
    low, high = batch_B[right - 1], batch_B[right]
    slope = (time_s_B[right] - time_s_B[right - 1]) / (high - low)
    if batch > high:
        return time_s_B[right] + max(slope, 0.0) * (batch - high)
    if batch < low:
        # Never cheaper per row than the smallest size that was measured.
        return max(time_s_B[0] + max(slope, 0.0) * (batch - low), time_s_B[0] * batch / low)
    return time_s_B[right - 1] + slope * (batch - low)
