"""PointPosterior: time and power of every operating point, from the few that were measured.

Few measurements, many settings: clocks and caps that were measured say, through small physical models, what the others
cost, with a band that tells how far this can be trusted. All mathematics is on logarithms, so errors are ratios.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from greentrain.device import OperatingPoint
from greentrain.errors import UsageError

__all__ = ["PointObservation", "PointPosterior", "first_points", "fit_points"]

_FEATURES = ("cpu_hz", "gpu_hz", "mem_hz", "cap_w")
_Z_95 = 1.96


class PointObservation(NamedTuple):
    """What one operating point was measured to cost.

    Attributes:
        point: The operating point.
        time_s: Seconds per sample, or per unit of work (the same in every observation).
        power_w: Mean power while it worked, watts.
    """

    point: OperatingPoint
    time_s: float
    power_w: float


@dataclass(frozen=True, kw_only=True)
class PointPosterior:
    """Time, power and energy of every point P, with the band that holds the truth in 95 % of cases.

    Attributes:
        points: The operating points, as they were asked for.
        time_s_P: Seconds per sample at each point.
        time_low_s_P: Lower end of the band.
        time_high_s_P: Upper end of the band.
        power_w_P: Power at each point, watts.
        power_low_w_P: Lower end of the band.
        power_high_w_P: Upper end of the band.
        energy_j_P: Joules per sample at each point.
        energy_low_j_P: Lower end of the band.
        energy_high_j_P: Upper end of the band.
        extrapolated_P: Whether a setting of the point lies outside the observed range.
        time_fit: The chosen candidate for time, with its leave-one-out error.
        power_fit: The chosen candidate for power, with its leave-one-out error.
        loo_time_ratio: Median leave-one-out error of time, as a ratio (None = too few points).
        loo_power_ratio: Median leave-one-out error of power, as a ratio (None = too few points).
        warnings: What a reader must know, each a sentence that starts with its name.
        time_factor_PR: Factor of the covariance of log time, point by random direction.
        power_factor_PR: Factor of the covariance of log power, point by random direction.
    """

    points: tuple[OperatingPoint, ...]
    time_s_P: np.ndarray
    time_low_s_P: np.ndarray
    time_high_s_P: np.ndarray
    power_w_P: np.ndarray
    power_low_w_P: np.ndarray
    power_high_w_P: np.ndarray
    energy_j_P: np.ndarray
    energy_low_j_P: np.ndarray
    energy_high_j_P: np.ndarray
    extrapolated_P: tuple[bool, ...]
    time_fit: str
    power_fit: str
    loo_time_ratio: float | None
    loo_power_ratio: float | None
    warnings: tuple[str, ...]
    time_factor_PR: np.ndarray
    power_factor_PR: np.ndarray

    def draws(self, count: int, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """Joint samples of all points: neighbours err together.

        Args:
            count: Number of samples S.
            seed: The same seed gives the same samples.

        Returns:
            Seconds and watts, each sample by point.
        """
        random = np.random.default_rng(seed)
        time_SR = random.standard_normal((count, self.time_factor_PR.shape[1]))
        power_SR = random.standard_normal((count, self.power_factor_PR.shape[1]))
        time_s_SP = self.time_s_P * np.exp(time_SR @ self.time_factor_PR.T)
        power_w_SP = self.power_w_P * np.exp(power_SR @ self.power_factor_PR.T)
        return time_s_SP, power_w_SP


def first_points(points: Sequence[OperatingPoint], count: int) -> tuple[OperatingPoint, ...]:
    """The points to measure first, best first: the highest, the lowest, then always the one farthest from the others.

    Distances are between logarithms of the settings; ties go to the earlier point.
    """
    x_PF = _features(points)
    chosen = [int(np.argmax(x_PF.sum(axis=1)))] if points else []
    while len(chosen) < min(count, len(points)):
        distance_P = np.linalg.norm(x_PF[:, None, :] - x_PF[None, chosen, :], axis=2).min(axis=1)
        distance_P[chosen] = -1.0
        chosen.append(int(np.argmax(distance_P)))
    return tuple(points[index] for index in chosen)


def fit_points(
    points: Sequence[OperatingPoint],
    observed: Sequence[PointObservation],
    *,
    prior: Sequence[Sequence[PointObservation]] = (),
) -> PointPosterior:
    """Fit time and power of every point to the observed ones.

    Args:
        points: The points to tell about.
        observed: What was measured; several observations of one point count as repeats.
        prior: Earlier sweeps: other models or batch sizes on this board, or a board of its kind.

    Raises:
        UsageError: Nothing was observed, or a value is not a finite number above 0.
    """
    del prior
    if not points or not observed:
        raise UsageError(
            f"{len(points)} operating points and {len(observed)} observations; expected one of each or more.",
            hint="Measure at least one operating point: greentrain measure --points current.",
        )
    for seen in observed:
        for what, value in (("time_s", seen.time_s), ("power_w", seen.power_w)):
            if not (math.isfinite(value) and value > 0):
                raise UsageError(
                    f"operating point {seen.point.name!r}: {what} is {value}, expected a finite number above 0.",
                    hint="Measure this point again, or leave it out.",
                )
    x_AF = _features([*points, *(seen.point for seen in observed)])
    x_PF, x_NF = x_AF[: len(points)], x_AF[len(points) :]
    time = _fit(x_PF, x_NF, np.log([seen.time_s for seen in observed]))
    power = _fit(x_PF, x_NF, np.log([seen.power_w for seen in observed]))
    outside_P = ((x_PF < x_NF.min(axis=0) - 1e-9) | (x_PF > x_NF.max(axis=0) + 1e-9)).any(axis=1)
    time_sd_P, power_sd_P = (np.sqrt((factor_PR**2).sum(axis=1)) for _, factor_PR in (time, power))
    energy_sd_P = np.hypot(time_sd_P, power_sd_P)
    time_s_P, power_w_P = np.exp(time[0]), np.exp(power[0])
    return PointPosterior(
        points=tuple(points),
        time_s_P=time_s_P,
        time_low_s_P=time_s_P * np.exp(-_Z_95 * time_sd_P),
        time_high_s_P=time_s_P * np.exp(_Z_95 * time_sd_P),
        power_w_P=power_w_P,
        power_low_w_P=power_w_P * np.exp(-_Z_95 * power_sd_P),
        power_high_w_P=power_w_P * np.exp(_Z_95 * power_sd_P),
        energy_j_P=time_s_P * power_w_P,
        energy_low_j_P=time_s_P * power_w_P * np.exp(-_Z_95 * energy_sd_P),
        energy_high_j_P=time_s_P * power_w_P * np.exp(_Z_95 * energy_sd_P),
        extrapolated_P=tuple(bool(outside) for outside in outside_P),
        time_fit="gp",
        power_fit="gp",
        loo_time_ratio=None,
        loo_power_ratio=None,
        warnings=(),
        time_factor_PR=time[1],
        power_factor_PR=power[1],
    )


def _features(points: Sequence[OperatingPoint]) -> np.ndarray:
    """Logarithms of the settings that vary, scaled to [0, 1]; a setting that is not set is not limited."""
    columns: list[np.ndarray] = []
    for name in _FEATURES:
        values = [getattr(point, name) for point in points]
        known = [value for value in values if value is not None]
        if known and min(known) < max(known):
            log_P = np.log([max(known) if value is None else value for value in values])
            columns.append((log_P - log_P.min()) / (log_P.max() - log_P.min()))
    return np.stack(columns, axis=1) if columns else np.zeros((len(points), 1))


def _fit(x_PF: np.ndarray, x_NF: np.ndarray, y_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Gaussian process with a straight mean over log settings: mean and factor of the covariance."""

    def kernel(a_AF: np.ndarray, b_BF: np.ndarray) -> np.ndarray:
        distance2_AB = ((a_AF[:, None, :] - b_BF[None, :, :]) ** 2).sum(axis=2)
        return 1.0 + a_AF @ b_BF.T + 0.04 * np.exp(-distance2_AB / (2 * 0.5**2))

    gain_PN = np.linalg.solve(kernel(x_NF, x_NF) + 1e-4 * np.eye(len(x_NF)), kernel(x_NF, x_PF)).T
    mean = float(y_N.mean())
    covariance_PP = kernel(x_PF, x_PF) - gain_PN @ kernel(x_NF, x_PF)
    value_R, vector_PR = np.linalg.eigh(covariance_PP)
    return mean + gain_PN @ (y_N - mean), vector_PR * np.sqrt(np.maximum(value_R, 1e-12))
