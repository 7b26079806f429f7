"""How well a few probes of a sweep tell the rest of it: held-out errors, coverage and energy regret."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from greentrain.point_model import PointObservation, first_points, fit_points
from greentrain_harness.bench._models_data import Sweep

__all__ = ["PRIORS", "Held", "Score", "held", "pooled", "score_sweeps"]

# The share of the truth that a band may miss.
_MISSED = 0.05

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


class Held(NamedTuple):
    """One quantity at the points H that were held out.

    Attributes:
        error_H: Relative error.
        inside_H: Whether the band holds the measured value.
        band_H: Half-width of the band, as a ratio.
        interval_H: Interval score (Winkler, 1972): the band's full width, and 2 / 0.05 times how far the value lies
            outside it, both over the value. Less is better; neither a wide band nor one that misses much is small.
    """

    error_H: np.ndarray
    inside_H: np.ndarray
    band_H: np.ndarray
    interval_H: np.ndarray


class Score(NamedTuple):
    """Held-out figures of many sweeps, pooled.

    Attributes:
        sweeps: Number of sweeps.
        time: Time at the held-out points.
        power: Power there.
        regret_S: Energy at the chosen point over the least energy, less 1, per sweep.
    """

    sweeps: int
    time: Held
    power: Held
    regret_S: np.ndarray


def score_sweeps(sweeps: Sequence[Sweep], probes: int, prior: str, *, among: Sequence[Sweep] | None = None) -> Score:
    """Fit each sweep from its first probes and compare with all that was held out.

    Args:
        sweeps: The sweeps to predict.
        probes: How many points of each are seen, in the order of ``first_points``.
        prior: A name of ``PRIORS``.
        among: Where earlier sweeps are looked for (None = among the sweeps themselves).
    """
    scores: list[Score] = []
    for sweep in sweeps:
        earlier = [other.observed for other in (among or sweeps) if PRIORS[prior](sweep, other)]
        if prior != "none" and not earlier:
            continue
        scored = _score(sweep, probes, earlier)
        if scored is not None:
            scores.append(scored)
    return Score(
        len(scores),
        pooled([score.time for score in scores]),
        pooled([score.power for score in scores]),
        np.concatenate([np.zeros(0), *(score.regret_S for score in scores)]),
    )


def held(value_H: np.ndarray, fit_H: np.ndarray, low_H: np.ndarray, high_H: np.ndarray) -> Held:
    """How well a fit and its 95 % band tell measured values.

    Args:
        value_H: What was measured.
        fit_H: What the fit says.
        low_H: Lower end of the band.
        high_H: Upper end of the band.
    """
    outside_H = np.maximum(low_H - value_H, 0.0) + np.maximum(value_H - high_H, 0.0)
    return Held(
        np.abs(fit_H / value_H - 1),
        (low_H <= value_H) & (value_H <= high_H),
        high_H / fit_H - 1,
        (high_H - low_H + 2 / _MISSED * outside_H) / value_H,
    )


def pooled(parts: Sequence[Held]) -> Held:
    """The parts one behind the other."""
    if not parts:
        return Held(np.zeros(0), np.zeros(0, dtype=bool), np.zeros(0), np.zeros(0))
    return Held(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def _score(sweep: Sweep, probes: int, earlier: Sequence[Sequence[PointObservation]]) -> Score | None:
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
    out_P = ~seen_P
    return Score(
        1,
        held(time_s_P[out_P], fit.time_s_P[out_P], fit.time_low_s_P[out_P], fit.time_high_s_P[out_P]),
        held(power_w_P[out_P], fit.power_w_P[out_P], fit.power_low_w_P[out_P], fit.power_high_w_P[out_P]),
        np.asarray([energy_j_P[expected_j_P.argmin()] / energy_j_P.min() - 1]),
    )
