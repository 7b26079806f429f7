"""Dominance of rows, against looking at every pair."""

from __future__ import annotations

import numpy as np
import pytest

from greentrain.planners.pareto import undominated_rows


class _OverError(Exception):
    pass


def test_rows_that_nothing_beats_are_those_of_all_pairs() -> None:
    rng = np.random.default_rng(1)
    for _ in range(40):
        rows_n = int(rng.integers(0, 60))
        key_N = rng.integers(0, 3, rows_n)
        figures_NC = rng.integers(0, 5, (rows_n, 3)).astype(float)
        kept: list[int] = []
        for row in range(rows_n):
            beaten = any(
                key_N[other] == key_N[row]
                and (figures_NC[other] <= figures_NC[row]).all()
                and ((figures_NC[other] < figures_NC[row]).any() or other < row)
                for other in range(rows_n)
            )
            if not beaten:
                kept.append(row)
        assert undominated_rows(key_N, figures_NC).tolist() == kept


def test_a_long_front_can_be_left() -> None:
    """Of rows of which none beats another each is looked at by itself: the time must not be forgotten meanwhile."""
    rows_n, looks = 100, 0

    def check_time() -> None:
        nonlocal looks
        looks += 1
        if looks == 10:
            raise _OverError

    rising = np.arange(float(rows_n))
    front_NC = np.stack([rising, -rising], axis=1)
    assert len(undominated_rows(np.zeros(rows_n, dtype=np.int64), front_NC)) == rows_n
    with pytest.raises(_OverError):
        undominated_rows(np.zeros(rows_n, dtype=np.int64), front_NC, check_time)
