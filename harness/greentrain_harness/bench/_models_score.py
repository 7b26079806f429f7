"""How well a few probes of a sweep tell the rest of it: held-out errors, coverage and energy regret."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from greentrain.point_model import PointObservation, first_points, fit_points
from greentrain_harness.bench._models_data import Sweep

__all__ = ["PRIORS", "Score", "score_sweeps"]

# Which other sweeps may serve as earlier ones, given the sweep at hand.
PRIORS: dict[str, Callable[[Sweep, Sweep], bool]] = {
    "none": lambda sweep, other: False,
    "other workloads": lambda sweep, other: other.device == sweep.device and other.workload != sweep.workload,
    "other sizes": lambda sweep, other: (
        other.device == sweep.device
        and other.workload == sweep.workload
        # The same batch with another optimizer would tell too much.
        and other.size.split()[0] != sweep.size.split()[0]
    ),
    "other devices": lambda sweep, other: other.device != sweep.device and other.workload != sweep.workload,
}


class Score(NamedTuple):
    """Held-out figures of many sweeps, pooled.

    Attributes:
        sweeps: Number of sweeps.
        time_H: Relative error of time at each held-out point.
        power_H: Relative error of power.
        time_in_H: Whether the band holds the measured time.
        power_in_H: Whether the band holds the measured power.
        time_band_H: Half-width of the time band, as a ratio.
        power_band_H: Half-width of the power band, as a ratio.
        regret_S: Energy at the chosen point over the least energy, less 1, per sweep.
    """

    sweeps: int
    time_H: np.ndarray
    power_H: np.ndarray
    time_in_H: np.ndarray
    power_in_H: np.ndarray
    time_band_H: np.ndarray
    power_band_H: np.ndarray
    regret_S: np.ndarray


def score_sweeps(sweeps: Sequence[Sweep], probes: int, prior: str, *, among: Sequence[Sweep] | None = None) -> Score:
    """Fit each sweep from its first probes and compare with all that was held out.

    Args:
        sweeps: The sweeps to predict.
        probes: How many points of each are seen, in the order of ``first_points``.
        prior: A name of ``PRIORS``.
        among: Where earlier sweeps are looked for (None = among the sweeps themselves).
    """
    rows: list[tuple[np.ndarray, ...]] = []
    regrets: list[float] = []
    for sweep in sweeps:
        earlier = [other.observed for other in (among or sweeps) if PRIORS[prior](sweep, other)]
        if prior != "none" and not earlier:
            continue
        scored = _score(sweep, probes, earlier)
        if scored is not None:
            rows.append(scored[0])
            regrets.append(scored[1])
    time_H, power_H, time_in_H, power_in_H, time_band_H, power_band_H = (
        np.concatenate(column) if rows else np.zeros(0) for column in (zip(*rows, strict=True) if rows else [()] * 6)
    )
    return Score(len(rows), time_H, power_H, time_in_H, power_in_H, time_band_H, power_band_H, np.asarray(regrets))


def _score(
    sweep: Sweep, probes: int, earlier: Sequence[Sequence[PointObservation]]
) -> tuple[tuple[np.ndarray, ...], float] | None:
    points = [seen.point for seen in sweep.observed]
    asked = first_points(points, probes)
    seen_P = np.asarray([point in asked for point in points])
    if seen_P.all():
        return None
    fit = fit_points(points, [seen for seen in sweep.observed if seen.point in asked], prior=earlier)
    time_s_P = np.asarray([seen.time_s for seen in sweep.observed])
    power_w_P = np.asarray([seen.power_w for seen in sweep.observed])
    energy_j_P = time_s_P * power_w_P
    # A probe's energy is known as it was measured.
    expected_j_P = np.where(seen_P, energy_j_P, fit.energy_j_P)
    held_P = ~seen_P
    columns = (
        np.abs(fit.time_s_P / time_s_P - 1)[held_P],
        np.abs(fit.power_w_P / power_w_P - 1)[held_P],
        ((fit.time_low_s_P <= time_s_P) & (time_s_P <= fit.time_high_s_P))[held_P],
        ((fit.power_low_w_P <= power_w_P) & (power_w_P <= fit.power_high_w_P))[held_P],
        (fit.time_high_s_P / fit.time_s_P - 1)[held_P],
        (fit.power_high_w_P / fit.power_w_P - 1)[held_P],
    )
    return columns, float(energy_j_P[expected_j_P.argmin()] / energy_j_P.min() - 1)
