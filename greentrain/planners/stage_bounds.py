"""What the stages before and behind a stage cost at least, in a round of a given window.

Once the length of the round is known to lie in a window, joules add up over stages: waiting is priced at the
window's short end and every stage must end within its long end. Shortest paths over (layers, devices left)
then give, for every stage, the joules that the rest of the plan takes at least.

Axis legend: U count vectors, L layer boundaries 0 … layers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from greentrain.planners.span_tables import SpanTables

__all__ = ["StageBounds", "least_fill_s", "stage_bounds"]


@dataclass(frozen=True, kw_only=True)
class StageBounds:
    """Least joules of parts of a plan; infinite where there is none.

    Attributes:
        stage_j_US: Of one stage, with the cut behind it.
        before_j_UL: Of the layers before a boundary, on at most these devices.
        behind_j_UL: Of the layers behind a boundary, on at most these devices.
        plan_j: Of a whole plan.
        before_with_j_UL: As ``before_j_UL``, but with a device that must be used.
    """

    stage_j_US: np.ndarray
    before_j_UL: np.ndarray
    behind_j_UL: np.ndarray
    plan_j: float
    before_with_j_UL: np.ndarray | None


def stage_bounds(
    stage_j_US: np.ndarray, spans: SpanTables, without_UU: np.ndarray, must_U: np.ndarray | None
) -> StageBounds:
    """Shortest paths over the stages.

    Args:
        stage_j_US: Least joules of every stage, with the cut behind it.
        spans: Where the spans start and stop.
        without_UU: Number of u − v, or −1.
        must_U: Which count vectors hold the device that must be used; None without a wish.
    """
    vectors_n, layers = len(stage_j_US), spans.span_LL.shape[0] - 1
    stage_j_ULL = np.full((vectors_n, layers + 1, layers + 1), np.inf)
    stage_j_ULL[:, spans.start_S, spans.stop_S] = stage_j_US
    before_j_UL = np.full((vectors_n, layers + 1), np.inf)
    behind_j_UL = np.full((vectors_n, layers + 1), np.inf)
    before_j_UL[0, 0] = behind_j_UL[0, layers] = 0.0
    for used in range(1, vectors_n):
        group = np.flatnonzero(without_UU[used] >= 0)[1:]  # The empty group is the first.
        rest = without_UU[used, group]
        before_j_UL[used] = (before_j_UL[rest][:, :, None] + stage_j_ULL[group]).min(axis=(0, 1))
        behind_j_UL[used] = (behind_j_UL[rest][:, None, :] + stage_j_ULL[group]).min(axis=(0, 2))
    whole_U = before_j_UL[:, layers]
    if must_U is not None:
        whole_U = np.where(must_U, whole_U, np.inf)
    return StageBounds(
        stage_j_US=stage_j_US,
        before_j_UL=_at_most(before_j_UL, without_UU, None),
        behind_j_UL=_at_most(behind_j_UL, without_UU, None),
        plan_j=float(whole_U.min()),
        before_with_j_UL=None if must_U is None else _at_most(before_j_UL, without_UU, must_U),
    )


def least_fill_s(stage_s_US: np.ndarray, spans: SpanTables, without_UU: np.ndarray) -> np.ndarray:
    """Seconds that one micro-batch spends in the layers before a boundary, forward and backward, at least.

    Args:
        stage_s_US: Least seconds per micro-batch of every stage.
        spans: Where the spans start and stop.
        without_UU: Number of u − v, or −1.

    Returns:
        For at most the devices of each count vector, shape (U, L).
    """
    vectors_n, layers = len(stage_s_US), spans.span_LL.shape[0] - 1
    stage_s_ULL = np.full((vectors_n, layers + 1, layers + 1), np.inf)
    stage_s_ULL[:, spans.start_S, spans.stop_S] = stage_s_US
    fill_s_UL = np.full((vectors_n, layers + 1), np.inf)
    fill_s_UL[0, 0] = 0.0
    for used in range(1, vectors_n):
        group = np.flatnonzero(without_UU[used] >= 0)[1:]
        fill_s_UL[used] = (fill_s_UL[without_UU[used, group]][:, :, None] + stage_s_ULL[group]).min(axis=(0, 1))
    return _at_most(fill_s_UL, without_UU, None)


def _at_most(exactly_UL: np.ndarray, without_UU: np.ndarray, allowed_U: np.ndarray | None) -> np.ndarray:
    """From "exactly these devices" to "at most these devices"."""
    inside_UU = without_UU >= 0
    if allowed_U is not None:
        inside_UU = inside_UU & allowed_U[None, :]
    return np.stack([exactly_UL[inside].min(axis=0, initial=np.inf) for inside in inside_UU])
