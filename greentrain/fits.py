"""Small fits of one quantity, time or power, over a device's settings; all on logarithms.

Two means, each with a Gaussian process for what they leave:

* physical: non-negative least squares (NNLS) over what physics allows, averaged over its variants. Power:
  ``c0 + c1·f + c3·f³`` per clock (dynamic CMOS power, a·u·f·V(f)²) and ``min(cap, demand)``. Time:
  ``t^p = a + Σ b/f^p``, whose p goes from additive (1) to a roofline (4), and a rise below the cap that is needed.
* monotone: for a single setting, a spline through the points that never turns.

Settings are logarithms of the share of the highest setting (x = 0 at the top).
Axes: N observed, Q asked for, F setting.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Literal, NamedTuple

import numpy as np

__all__ = [
    "NOISE",
    "Fit",
    "MeanFit",
    "Quantity",
    "Task",
    "kernel",
    "kriged",
    "monotone_mean",
    "physical_mean",
    "with_residuals",
    "wrong_way_noise",
]

Quantity = Literal["time", "power"]

# Relative noise of a single measurement that is assumed before any is seen.
NOISE = 0.015
_ROOFLINES = (1.0, 2.0, 4.0)
_CAP_POWERS = (1.0, 2.0, 4.0)
# Shares of the highest clock from which the voltage rises with the clock; 0 is the textbook f³.
_VOLTAGE_FROM = (0.0, 0.5, 0.7, 0.85)
_KNEES = 8
# One e-fold of a setting over which a departure from the mean fit persists.
_LENGTH = 0.5


class Task(NamedTuple):
    """What is fitted.

    Attributes:
        quantity: Time falls with every setting, power rises.
        is_cap_F: Whether each setting is a power cap; the others are clocks.
    """

    quantity: Quantity
    is_cap_F: tuple[bool, ...]


class MeanFit(NamedTuple):
    """A mean with its own uncertainty, at the observed and at the asked-for settings."""

    log_N: np.ndarray
    log_Q: np.ndarray
    cov_QQ: np.ndarray


class Fit(NamedTuple):
    """Mean and covariance of a log quantity at the asked-for settings, and the noise of a new measurement there."""

    log_Q: np.ndarray
    cov_QQ: np.ndarray
    noise: float = NOISE


class _Variant(NamedTuple):
    exponent: float
    voltage_from: float
    knee: float
    cap_power: float
    columns: tuple[int, ...]


def physical_mean(task: Task, x_NF: np.ndarray, z_N: np.ndarray, x_QF: np.ndarray) -> MeanFit:
    """Average of the physical variants, each weighed by how well it explains the observations.

    The weight is the likelihood with the noise integrated out, times BIC's price per coefficient.
    """
    from scipy.optimize import nnls

    n = len(z_N)
    x_AF = np.concatenate([x_NF, x_QF])
    log_VA: list[np.ndarray] = []
    weight_V: list[float] = []
    for variant in _variants(task, x_NF):
        columns_AC = _columns(task, variant, x_AF)
        # Relative errors of y^p count alike at every point.
        scale_N = np.exp(-variant.exponent * z_N)
        coefficient_C, _ = nnls(columns_AC[:n] * scale_N[:, None], np.ones(n))
        value_A = columns_AC @ coefficient_C
        if not (value_A > 0).all():
            continue
        log_A = np.log(value_A) / variant.exponent
        error = float(((log_A[:n] - z_N) ** 2).mean())
        used = int((coefficient_C > 0).sum())
        log_VA.append(log_A)
        weight_V.append(-0.5 * n * np.log(NOISE**2 + error) - 0.5 * used * np.log(max(n, 2)))
    if not log_VA:
        log_VA, weight_V = [np.full(len(x_AF), float(z_N.mean()))], [0.0]
    share_V = np.exp(np.asarray(weight_V) - max(weight_V))
    share_V /= share_V.sum()
    log_A = share_V @ np.stack(log_VA)
    apart_VQ = (np.stack(log_VA) - log_A)[:, n:]
    return MeanFit(log_A[:n], log_A[n:], (apart_VQ * share_V[:, None]).T @ apart_VQ)


def monotone_mean(task: Task, x_NF: np.ndarray, z_N: np.ndarray, x_QF: np.ndarray) -> MeanFit:
    """Isotonic regression joined by a monotone cubic (PCHIP) over one setting; the end slopes are held outside."""
    from scipy.interpolate import PchipInterpolator
    from scipy.optimize import isotonic_regression

    x_D, back_N, count_D = np.unique(x_NF[:, 0], return_inverse=True, return_counts=True)
    mean_D = np.bincount(back_N, weights=z_N) / count_D
    z_D = isotonic_regression(mean_D, weights=count_D.astype(float), increasing=task.quantity == "power").x
    x_Q = x_QF[:, 0]
    inside = np.clip(x_Q, x_D[0], x_D[-1])
    low_slope = (z_D[1] - z_D[0]) / (x_D[1] - x_D[0])
    high_slope = (z_D[-1] - z_D[-2]) / (x_D[-1] - x_D[-2])
    log_Q = PchipInterpolator(x_D, z_D)(inside)
    log_Q = log_Q + low_slope * np.minimum(x_Q - x_D[0], 0.0) + high_slope * np.maximum(x_Q - x_D[-1], 0.0)
    return MeanFit(z_D[back_N], np.asarray(log_Q), np.zeros((len(x_Q), len(x_Q))))


def with_residuals(
    mean: MeanFit, x_NF: np.ndarray, z_N: np.ndarray, x_QF: np.ndarray, *, amplitude: float, noise_N: np.ndarray
) -> Fit:
    """A mean plus a Gaussian process for what it leaves.

    Args:
        mean: The mean at the observed and the asked-for settings.
        x_NF: Observed settings.
        z_N: Observed logarithms.
        x_QF: Asked-for settings.
        amplitude: How far the truth may depart from the mean, as a ratio.
        noise_N: Relative noise of each observation.
    """
    centre_F = x_NF.mean(axis=0)
    kernel_NN = amplitude**2 * kernel(x_NF, x_NF, centre_F) + np.diag(noise_N**2)
    kernel_NQ = amplitude**2 * kernel(x_NF, x_QF, centre_F)
    gain_NQ = np.linalg.solve(kernel_NN, kernel_NQ)
    cov_QQ = amplitude**2 * kernel(x_QF, x_QF, centre_F) - kernel_NQ.T @ gain_NQ
    return Fit(mean.log_Q + (z_N - mean.log_N) @ gain_NQ, cov_QQ + mean.cov_QQ)


def wrong_way_noise(task: Task, x_NF: np.ndarray, z_N: np.ndarray) -> float:
    """Relative noise of one measurement, told by what goes the wrong way.

    More of every setting never costs time and never saves power, so a difference of the other sign is noise. Of a flat
    curve half the pairs go the wrong way, each by a mean square of twice the variance. The assumed noise counts as four
    measurements, and is the least.
    """
    way = 1.0 if task.quantity == "time" else -1.0
    above_NN = (x_NF[:, None, :] >= x_NF[None, :, :]).all(axis=2) & (x_NF[:, None, :] > x_NF[None, :, :]).any(axis=2)
    pairs = int(above_NN.sum())
    if pairs == 0:
        return NOISE
    wrong_NN = np.where(above_NN, np.maximum(way * (z_N[:, None] - z_N[None, :]), 0.0), 0.0)
    seen = len(z_N) - 1
    variance = (4 * NOISE**2 + seen * float((wrong_NN**2).sum()) / pairs) / (4 + seen)
    return max(NOISE, float(np.sqrt(variance)))


def kriged(x_NF: np.ndarray, z_N: np.ndarray, x_QF: np.ndarray) -> np.ndarray:
    """A dense sweep read at other settings: a Gaussian process over a plane, close to every measured point."""
    centre_F = x_NF.mean(axis=0)
    mean = float(z_N.mean())
    kernel_NN = kernel(x_NF, x_NF, centre_F) + 3.0 * (x_NF - centre_F) @ (x_NF - centre_F).T
    kernel_QN = kernel(x_QF, x_NF, centre_F) + 3.0 * (x_QF - centre_F) @ (x_NF - centre_F).T
    return mean + kernel_QN @ np.linalg.solve(kernel_NN + 1e-4 * np.eye(len(z_N)), z_N - mean)


def kernel(a_AF: np.ndarray, b_BF: np.ndarray, centre_F: np.ndarray) -> np.ndarray:
    """Matérn 3/2, for departures that come and go, plus a slope, for those that grow outside the measured range."""
    distance_AB = np.sqrt(((a_AF[:, None, :] - b_BF[None, :, :]) ** 2).sum(axis=2)) * (np.sqrt(3.0) / _LENGTH)
    return (1.0 + distance_AB) * np.exp(-distance_AB) + (a_AF - centre_F) @ (b_BF - centre_F).T


def _variants(task: Task, x_NF: np.ndarray) -> list[_Variant]:
    clocks = [not is_cap for is_cap in task.is_cap_F].count(True)
    caps = [x_NF[:, setting] for setting, is_cap in enumerate(task.is_cap_F) if is_cap]
    knees, cap_powers = (0.0,), (1.0,)
    if caps:
        knees = tuple(np.linspace(float(caps[0].min()), max(float(caps[0].max()), 0.0), _KNEES))
        cap_powers = _CAP_POWERS if task.quantity == "time" else (1.0,)
    exponents = _ROOFLINES if task.quantity == "time" and clocks and not caps else (1.0,)
    voltages = _VOLTAGE_FROM if task.quantity == "power" and clocks else (0.0,)
    per_clock = 1 if task.quantity == "time" else 2
    all_columns = tuple(range(1 + clocks * per_clock + len(caps)))
    return [
        _Variant(exponent, voltage_from, knee, cap_power, columns)
        for exponent in exponents
        for voltage_from in voltages
        for knee in knees
        for cap_power in cap_powers
        for columns in _column_sets(all_columns, len(x_NF))
    ]


def _column_sets(all_columns: tuple[int, ...], n: int) -> Sequence[tuple[int, ...]]:
    """Every small model explains one or two points; from three on, NNLS itself leaves out what is not needed."""
    if n >= 3:
        return (all_columns,)
    return [columns for size in range(1, n + 1) for columns in combinations(all_columns, size)]


def _columns(task: Task, variant: _Variant, x_AF: np.ndarray) -> np.ndarray:
    columns = [np.ones(len(x_AF))]
    for setting, is_cap in enumerate(task.is_cap_F):
        x_A = x_AF[:, setting]
        columns += _cap_columns(task, variant, x_A) if is_cap else _clock_columns(task, variant, x_A)
    return np.stack(columns, axis=1)[:, list(variant.columns)]


def _clock_columns(task: Task, variant: _Variant, x_A: np.ndarray) -> list[np.ndarray]:
    if task.quantity == "time":
        return [np.exp(-variant.exponent * x_A)]
    share_A = np.exp(x_A)
    if variant.voltage_from == 0.0:
        return [share_A, share_A**3]
    return [share_A, share_A * np.maximum(share_A / variant.voltage_from, 1.0) ** 2]


def _cap_columns(task: Task, variant: _Variant, x_A: np.ndarray) -> list[np.ndarray]:
    if task.quantity == "power":
        return [np.exp(np.minimum(x_A, variant.knee))]
    return [np.expm1(variant.cap_power * np.maximum(variant.knee - x_A, 0.0))]
