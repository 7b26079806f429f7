"""Which operating point to measure next: the one whose measurement is expected to help the decision most.

The decision is one operating point: the least energy, time or product of both. Its regret is what the chosen point
costs above the best one, as a ratio. Nobody knows the best one before all are measured, but the joint draws of a
posterior say what to expect. The next point is found by the knowledge gradient (Frazier, Powell and Dayanik, 2009):
how far the least expected value falls, on average, once that point's time and power are known.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import msgspec
import numpy as np

from greentrain._checks import require_positive
from greentrain.device import OperatingPoint
from greentrain.observation import log_settings, setting_names
from greentrain.point_model import PointObservation, PointPosterior, first_points, fit_points

__all__ = ["ENOUGH_RATIO", "Decision", "Proposal", "next_probe", "propose_probe", "start_points"]

# Below this expected regret nothing more needs to be measured.
ENOUGH_RATIO = 0.01

_DRAWS_N = 1024
_NODES_N = 9
_JITTER = 1e-12
# Beside the choice a fit is trusted less: this many standard deviations.
_CAUTION = 3.0
# Being late by 1 % costs as much as 20 % of the objective: a limit, yet smooth enough to be learned about.
_LATE_POWER = 20.0


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """What the chosen operating point is to be best at.

    Attributes:
        minimise: Joules, seconds, or their product, each per unit of work.
        max_time_s: Seconds that a unit of work may take; None where any time will do.
    """

    minimise: Literal["energy", "time", "edp"] = "energy"
    max_time_s: float | None = None

    def __post_init__(self) -> None:
        require_positive(max_time_s=self.max_time_s)


@dataclass(frozen=True)
class Proposal:
    """What to measure next, and how good the choice is so far.

    Attributes:
        index: Point to measure next; None when measuring may end.
        expected_regret_ratio: What the present choice is expected to cost above the best point, as a ratio.
        chosen_index: The present choice.
        reason: Why, in one sentence without a full stop.
    """

    index: int | None
    expected_regret_ratio: float
    chosen_index: int
    reason: str


def propose_probe(
    points: Sequence[OperatingPoint], observed: Mapping[int, PointObservation], *,
    prior: Sequence[Sequence[PointObservation]] = (), decision: Decision,
) -> tuple[Proposal, PointPosterior]:  # fmt: skip
    """Fit what was measured, and propose the next point.

    Earlier sweeps lead to good points soon, but they may mislead. The search ends only when the measured points alone,
    without them, say so too.

    Args:
        points: All points.
        observed: What was measured, by index of the point; one at least.
        prior: Earlier sweeps of this board or its kind.
        decision: What the choice is to be best at.

    Returns:
        The proposal, and the fit with the earlier sweeps.

    Raises:
        UsageError: What was measured cannot be, such as milliwatts among watts.
    """
    seen = list(observed.values())
    posterior = fit_points(points, seen, prior=prior)
    proposal = next_probe(posterior, observed, decision=decision)
    if proposal.index is None and prior and len(observed) < len(points):
        plain = next_probe(fit_points(points, seen), observed, decision=decision)
        if plain.index is not None:
            reason = f"earlier sweeps are sure of {points[proposal.chosen_index].name}, what was measured is not yet"
            proposal = replace(proposal, index=plain.index, reason=reason)
    return proposal, posterior


def next_probe(
    posterior: PointPosterior, observed: Mapping[int, PointObservation], *, decision: Decision
) -> Proposal:  # fmt: skip
    """The point to measure next; the same for the same input.

    Measuring ends when every point was measured, or when the choice was, with those beside it that may still be
    better, and its expected regret is below 1 %.

    Args:
        posterior: Time and power of every point P, fitted to what was measured.
        observed: What was measured, by index of the point. A measured point costs what was measured: the fit smooths,
            but it decides only about the others.
        decision: What the choice is to be best at.
    """
    time_s_SP, power_w_SP = posterior.draws(_DRAWS_N, seed=0)
    for index, seen in observed.items():
        time_s_SP[:, index], power_w_SP[:, index] = seen.time_s, seen.power_w
    log_time_SP, log_power_SP = np.log(time_s_SP), np.log(power_w_SP)
    value_SP = _log_values(log_time_SP, log_power_SP, decision)
    # Expected ratio above the best point of the same draw.
    regret_P = np.expm1(value_SP - value_SP.min(axis=1, keepdims=True)).mean(axis=0)
    chosen = int(np.argmin(regret_P))
    regret = float(regret_P[chosen])
    names = [point.name for point in posterior.points]
    left = np.array([index for index in range(len(names)) if index not in observed], dtype=int)

    def propose(index: int | None, reason: str) -> Proposal:
        return Proposal(index, regret, chosen, reason)

    if len(left) == 0:
        return propose(None, "every point was measured")
    if regret < ENOUGH_RATIO:
        if chosen not in observed:
            return propose(chosen, f"the choice {names[chosen]} rests on a prediction")
        beside = _beside(posterior.points, chosen, left, value_SP)
        if beside is not None:
            return propose(beside, f"it lies beside the choice, {names[chosen]}, and may still be better")
        return propose(None, f"the expected regret of {names[chosen]} is {regret:.1%}, below {ENOUGH_RATIO:.0%}")
    gain_P = _gains(log_time_SP, log_power_SP, value_SP)
    if gain_P[left].max() < ENOUGH_RATIO * regret:
        # No single measurement is expected to change the choice: look where the choice loses most.
        gain_P = np.maximum(value_SP[:, [chosen]] - value_SP, 0.0).mean(axis=0)
    best = int(left[np.argmax(gain_P[left])])
    return propose(best, f"it is expected to tell most about the choice, {names[chosen]} so far, regret {regret:.1%}")


def start_points(
    points: Sequence[OperatingPoint], *, prior: Sequence[Sequence[PointObservation]] = ()
) -> tuple[OperatingPoint, ...]:
    """The points to measure before the first proposal: the highest alone where earlier sweeps say how the rest follows.

    Args:
        points: All points.
        prior: Earlier sweeps of this board or its kind.
    """
    return first_points(points, 1 if prior else 2)


def _beside(points: Sequence[OperatingPoint], chosen: int, left: np.ndarray, value_SP: np.ndarray) -> int | None:
    """The most promising neighbour of the choice that was not measured and may be better by more than what is enough.

    Two points are neighbours when no third one lies in the sphere between them (Gabriel graph, in log settings): on a
    line the next on either side, on a grid the next in each direction.
    """
    x_PF = log_settings(points, setting_names(points))
    x_PF = x_PF / np.where(np.ptp(x_PF, axis=0) > 0, np.ptp(x_PF, axis=0), 1.0)
    distance2_PP = ((x_PF[:, None, :] - x_PF[None, :, :]) ** 2).sum(axis=2)
    low_P = value_SP.mean(axis=0) - _CAUTION * value_SP.std(axis=0)
    may_be_better_P = low_P < value_SP[:, chosen].mean() - ENOUGH_RATIO

    def is_neighbour(index: int) -> bool:
        around_P = distance2_PP[chosen] + distance2_PP[index] <= distance2_PP[chosen, index] * (1 + 1e-9)
        apart_P = (distance2_PP[chosen] > 0) & (distance2_PP[index] > 0)
        return bool(distance2_PP[chosen, index] > 0 and not (around_P & apart_P).any())

    found = [int(index) for index in left if may_be_better_P[index] and is_neighbour(int(index))]
    return min(found, key=lambda index: float(low_P[index])) if found else None


def _log_values(log_time_SP: np.ndarray, log_power_SP: np.ndarray, decision: Decision) -> np.ndarray:
    """Logarithm of the objective, with a steep price on being late."""
    if decision.minimise == "time":
        value_SP = log_time_SP
    elif decision.minimise == "edp":
        value_SP = 2 * log_time_SP + log_power_SP
    else:
        value_SP = log_time_SP + log_power_SP
    if decision.max_time_s is None:
        return value_SP
    return value_SP + _LATE_POWER * np.maximum(log_time_SP - np.log(decision.max_time_s), 0.0)


def _gains(log_time_SP: np.ndarray, log_power_SP: np.ndarray, value_SP: np.ndarray) -> np.ndarray:
    """Expected fall of the least expected value once a point's time and power are known, for each point.

    Knowing them shifts every point's mean by its regression on both (normal logarithms); the expectation over what
    will be found is a Gauss-Hermite sum over the two whitened directions.
    """
    mean_P = value_SP.mean(axis=0)
    time_SP, power_SP, rest_SP = (
        matrix_SP - matrix_SP.mean(axis=0) for matrix_SP in (log_time_SP, log_power_SP, value_SP)
    )
    samples = len(value_SP)
    # Cholesky factor [[a, 0], [b, c]] of each point's 2 × 2 covariance.
    a_P = np.sqrt((time_SP**2).mean(axis=0) + _JITTER)
    b_P = (time_SP * power_SP).mean(axis=0) / a_P
    c_P = np.sqrt(np.maximum((power_SP**2).mean(axis=0) - b_P**2, 0.0) + _JITTER)
    # Shift of point Q per whitened unit of what is found at point P.
    first_PQ = (time_SP.T @ rest_SP / samples) / a_P[:, None]
    second_PQ = (power_SP.T @ rest_SP / samples - b_P[:, None] * first_PQ) / c_P[:, None]
    least_PK = np.stack(
        [(mean_P + first * first_PQ + second * second_PQ).min(axis=1) for first, second in _NODES_KC], axis=1
    )
    return mean_P.min() - least_PK @ _WEIGHTS_K


def _nodes() -> tuple[np.ndarray, np.ndarray]:
    node_N, weight_N = np.polynomial.hermite_e.hermegauss(_NODES_N)
    weight_N = weight_N / weight_N.sum()
    first_KC, second_KC = np.meshgrid(node_N, node_N, indexing="ij")
    return np.stack([first_KC.ravel(), second_KC.ravel()], axis=1), np.outer(weight_N, weight_N).ravel()


_NODES_KC, _WEIGHTS_K = _nodes()
