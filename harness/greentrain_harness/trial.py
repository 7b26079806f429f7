"""How many trials are enough: the 95 % confidence interval of a mean, and how many more it would take."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

__all__ = ["interval_ratio", "more_trials_needed"]

# Student's t at 97.5 % for 1, 2, 3 … degrees of freedom; 2.0 beyond.
_STUDENT_T = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120,
    2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip
_MOST = 1000


def interval_ratio(values: Sequence[float]) -> float:
    """Half of the 95 % confidence interval of the mean, over the mean; infinite for fewer than two values."""
    if len(values) < 2:
        return math.inf
    return _ratio(values, len(values))


def more_trials_needed(values: Sequence[float], target_ratio: float) -> int:
    """Trials that are still missing until the interval is as tight as that, if the scatter stays as it is.

    Args:
        values: One figure per trial so far.
        target_ratio: Wanted half width over the mean, such as 0.05.
    """
    if len(values) < 2:
        return 2 - len(values)
    return next((n - len(values) for n in range(len(values), _MOST) if _ratio(values, n) <= target_ratio), _MOST)


def _ratio(values: Sequence[float], n: int) -> float:
    mean = statistics.fmean(values)
    scatter = statistics.stdev(values)
    if scatter == 0:
        return 0.0
    t = _STUDENT_T[n - 2] if n - 2 < len(_STUDENT_T) else 2.0
    return t * scatter / math.sqrt(n) / abs(mean) if mean else math.inf
