"""PointPosterior: time and power of every operating point, from the few that were measured.

Few measurements, many settings: clocks and caps that were measured say, through small physical models, what the others
cost, with a band that tells how far this can be trusted. All mathematics is on logarithms, so errors are ratios.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from greentrain.choice import Chosen, Data, choose
from greentrain.device import OperatingPoint
from greentrain.fits import NOISE, Quantity, Task
from greentrain.observation import (
    PointObservation,
    check_observed,
    log_settings,
    names_of,
    setting_names,
    usable_sweeps,
)
from greentrain.transfer import Aligned, align_sweep

__all__ = ["PointObservation", "PointPosterior", "first_points", "fit_points"]

# A left-out observation that is off by this ratio, and by this many standard deviations, is odd.
_ODD_LOG, _ODD_SD = 0.25, 4.0
_MOST_DIRECTIONS = 256


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
        time_cov_PP: Covariance of log time between points.
        power_cov_PP: Covariance of log power between points.
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
    time_cov_PP: np.ndarray
    power_cov_PP: np.ndarray

    def draws(self, count: int, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """Joint samples of all points: neighbours err together.

        Args:
            count: Number of samples S.
            seed: The same seed gives the same samples.

        Returns:
            Seconds and watts, each sample by point.
        """
        random = np.random.default_rng(seed)
        time_SP, power_SP = (
            random.standard_normal((count, len(root_RP))) @ root_RP
            for root_RP in (_root(self.time_cov_PP), _root(self.power_cov_PP))
        )
        return self.time_s_P * np.exp(time_SP), self.power_w_P * np.exp(power_SP)


def first_points(points: Sequence[OperatingPoint], count: int) -> tuple[OperatingPoint, ...]:
    """The points to measure first, best first: the highest, the lowest, then always the one farthest from the others.

    Distances count the share of a setting and its logarithm alike, because time bends at low settings and power at high
    ones. Only the settings are looked at; ties go to the earlier point.

    Args:
        points: The points to choose from.
        count: How many; fewer are given where there are not so many different settings.
    """
    if not points or count < 1:
        return ()
    log_PF = log_settings(points, setting_names(points))
    both_PF = np.concatenate([_unit(log_PF), _unit(np.exp(log_PF))], axis=1)
    level_P = both_PF.sum(axis=1)
    chosen = [int(np.argmax(level_P)), int(np.argmin(level_P))][: 1 if np.ptp(level_P) == 0 else count]
    while len(chosen) < count:
        distance_P = np.abs(both_PF[:, None, :] - both_PF[None, chosen, :]).sum(axis=2).min(axis=1)
        if distance_P.max() <= 0:
            break
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
        observed: What was measured; several observations of one setting count as repeats.
        prior: Earlier sweeps: other models or batch sizes on this board, or a board of its kind.

    Raises:
        UsageError: Nothing was observed, a value is not a finite number above 0, or one is wrong by a factor such as
            1000, as when milliwatts are taken for watts.
    """
    warnings = check_observed(points, observed)
    sweeps, sweep_warnings = usable_sweeps(prior)
    settings = _settings(points, observed)
    time = _fit(settings, "time", [seen.time_s for seen in observed], sweeps)
    power = _fit(settings, "power", [seen.power_w for seen in observed], sweeps)
    warnings += [*sweep_warnings, *_sweep_warnings(sweeps, power), *settings.warnings, *time.warnings, *power.warnings]
    return _posterior(points, time.chosen, power.chosen, settings.outside_P, tuple(warnings))


class _Settings(NamedTuple):
    """Log settings: of D different observed ones, of all P asked for, and where each of N observations belongs."""

    names: tuple[str, ...]
    log_DF: np.ndarray
    log_PF: np.ndarray
    group_N: np.ndarray
    point_D: tuple[OperatingPoint, ...]
    outside_P: np.ndarray
    everything: tuple[OperatingPoint, ...]
    warnings: tuple[str, ...]


class _Fitted(NamedTuple):
    chosen: Chosen
    scaled: bool
    used: int
    level_log: float | None
    warnings: tuple[str, ...]


def _settings(points: Sequence[OperatingPoint], observed: Sequence[PointObservation]) -> _Settings:
    seen_points = [seen.point for seen in observed]
    everything = (*points, *seen_points)
    names = setting_names(everything)
    log_NF = log_settings(seen_points, names, among=points)
    log_PF = log_settings(points, names, among=seen_points)
    log_DF, first_D, group_N = np.unique(log_NF.round(6), axis=0, return_index=True, return_inverse=True)
    outside_P = ((log_PF < log_DF.min(axis=0) - 1e-5) | (log_PF > log_DF.max(axis=0) + 1e-5)).any(axis=1)
    warnings: list[str] = []
    if outside_P.any():
        beyond = [point for point, outside in zip(points, outside_P, strict=True) if outside]
        warnings.append(f"extrapolated: {names_of(beyond)} lie outside the settings that were measured.")
    distinct = len(np.unique(log_PF.round(6), axis=0))
    if distinct < len({point.name for point in points}):
        warnings.append("same-settings: some points differ in name only; the fit cannot tell them apart.")
    if len(log_DF) == 1 and distinct > 1:
        warnings.append("one-point: a single setting was measured; how the others differ is physics or earlier sweeps.")
    point_D = tuple(seen_points[index] for index in first_D)
    return _Settings(names, log_DF, log_PF, group_N.reshape(-1), point_D, outside_P, everything, tuple(warnings))


def _fit(
    settings: _Settings, quantity: Quantity, values: Sequence[float], sweeps: Sequence[Sequence[PointObservation]]
) -> _Fitted:
    count_D = np.bincount(settings.group_N)
    z_N = np.log(values)
    z_D = np.bincount(settings.group_N, weights=z_N) / count_D
    repeats = len(z_N) - len(z_D)
    noise = NOISE
    if repeats:
        noise = max(noise, float(np.sqrt(((z_N - z_D[settings.group_N]) ** 2).sum() / repeats)))
    log_AF = np.concatenate([settings.log_DF, settings.log_PF])
    aligned = _aligned(settings, log_AF, quantity, sweeps)
    prior_JA = np.stack([sweep.log_A for sweep in aligned]) if aligned else np.zeros((0, len(log_AF)))
    scaled = any(sweep.scaled for sweep in aligned)
    x_AF = log_AF - log_AF.max(axis=0)
    data = Data(
        task=Task(quantity, tuple(name == "cap_w" for name in settings.names) or (False,)),
        x_NF=x_AF[: len(z_D)],
        z_N=z_D,
        noise_N=np.zeros(len(z_D)),
        count_N=count_D,
        repeat_noise=noise,
        x_QF=x_AF[len(z_D) :],
        prior_JA=prior_JA,
        level_counts=quantity == "power" and not scaled,
    )
    chosen = choose(data)
    odd = [
        (left_out, float(error))
        for left_out, error, sd in zip(chosen.left_out_L, chosen.error_L, chosen.sd_L, strict=True)
        if abs(error) > max(_ODD_LOG, _ODD_SD * sd)
    ]
    warnings = tuple(
        f"outlier: {quantity} at {settings.point_D[left_out].name} is {np.exp(-error):.2f} times what the other points "
        "say; measure it again."
        for left_out, error in odd
    )
    if odd:
        noise_D = data.noise_N.copy()
        for left_out, error in odd:
            noise_D[left_out] = abs(error)
        chosen = choose(data._replace(noise_N=noise_D))
    level_log = float((z_D - prior_JA[:, : len(z_D)].mean(axis=0)).mean()) if aligned else None
    return _Fitted(chosen, scaled, len(aligned), level_log, warnings)


def _aligned(
    settings: _Settings, log_AF: np.ndarray, quantity: Quantity, sweeps: Sequence[Sequence[PointObservation]]
) -> list[Aligned]:
    """Sweeps read at these settings; those of this very board's settings where there are any, else scaled ones."""
    aligned: list[Aligned] = []
    for sweep in sweeps:
        points = [seen.point for seen in sweep]
        own = any(getattr(point, name) is not None for point in points for name in settings.names)
        if settings.names and not own:
            continue
        log_MF = log_settings(points, settings.names)
        values = [seen.time_s if quantity == "time" else seen.power_w for seen in sweep]
        read = align_sweep(log_AF, log_MF, np.log(values))
        if read is not None:
            aligned.append(read)
    same = [sweep for sweep in aligned if not sweep.scaled]
    return same or aligned


def _sweep_warnings(sweeps: Sequence[Sequence[PointObservation]], power: _Fitted) -> list[str]:
    warnings: list[str] = []
    if len(sweeps) > power.used:
        warnings.append(
            f"earlier-sweep: {len(sweeps) - power.used} of {len(sweeps)} earlier sweeps cover other settings and were "
            "not used."
        )
    if power.scaled:
        warnings.append(
            "scaled-sweep: earlier sweeps have other clocks or caps; they were read as shares of the highest."
        )
    if power.level_log is not None and abs(power.level_log) > np.log(100.0):
        warnings.append(
            f"power-unit: power is {np.exp(power.level_log):.3g} times that of earlier sweeps; watts or milliwatts?"
        )
    return warnings


def _posterior(
    points: Sequence[OperatingPoint], time: Chosen, power: Chosen, outside_P: np.ndarray, warnings: tuple[str, ...]
) -> PointPosterior:
    log_energy_P = time.log_Q + power.log_Q
    # Errors of time and of power are taken as independent.
    half_P = np.hypot(time.half_Q, power.half_Q)
    return PointPosterior(
        points=tuple(points),
        time_s_P=np.exp(time.log_Q),
        time_low_s_P=np.exp(time.log_Q - time.half_Q),
        time_high_s_P=np.exp(time.log_Q + time.half_Q),
        power_w_P=np.exp(power.log_Q),
        power_low_w_P=np.exp(power.log_Q - power.half_Q),
        power_high_w_P=np.exp(power.log_Q + power.half_Q),
        energy_j_P=np.exp(log_energy_P),
        energy_low_j_P=np.exp(log_energy_P - half_P),
        energy_high_j_P=np.exp(log_energy_P + half_P),
        extrapolated_P=tuple(bool(outside) for outside in outside_P),
        time_fit=_told(time),
        power_fit=_told(power),
        loo_time_ratio=_loo_ratio(time),
        loo_power_ratio=_loo_ratio(power),
        warnings=warnings,
        time_cov_PP=time.cov_QQ,
        power_cov_PP=power.cov_QQ,
    )


def _loo_ratio(chosen: Chosen) -> float | None:
    return float(np.median(np.abs(np.expm1(chosen.error_L)))) if len(chosen.error_L) else None


def _told(chosen: Chosen) -> str:
    ratio = _loo_ratio(chosen)
    return f"{chosen.name}, leave-one-out " + ("not known" if ratio is None else f"{100 * ratio:.1f} %")


def _root(cov_PP: np.ndarray) -> np.ndarray:
    """A matrix R with R^T R = the covariance: Cholesky by the largest remaining variance, until next to none is left.

    The covariance may be singular, and smooth ones of many points need few rows (pivoted incomplete Cholesky;
    Harbrecht, Peters and Schneider, 2012).
    """
    left_P = np.maximum(np.diag(cov_PP).copy(), 0.0)
    least = 1e-9 * float(left_P.max(initial=0.0))
    root_RP = np.zeros((min(len(cov_PP), _MOST_DIRECTIONS), len(cov_PP)))
    for row in range(len(root_RP)):
        pivot = int(left_P.argmax())
        if left_P[pivot] <= least:
            return root_RP[:row]
        rest_P = cov_PP[pivot] - root_RP[:row, pivot] @ root_RP[:row]
        root_RP[row] = rest_P / np.sqrt(left_P[pivot])
        left_P = np.maximum(left_P - root_RP[row] ** 2, 0.0)
        left_P[pivot] = 0.0
    return root_RP


def _unit(value_PF: np.ndarray) -> np.ndarray:
    """Each column scaled to [0, 1]."""
    span_F = np.ptp(value_PF, axis=0)
    return (value_PF - value_PF.min(axis=0)) / np.where(span_F > 0, span_F, 1.0)
