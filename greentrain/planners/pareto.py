"""Dominance: which rows are beaten in every coordinate by another row of their group."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

__all__ = ["undominated_rows"]


def undominated_rows(
    key_N: np.ndarray, coordinates_NC: np.ndarray, check_time: Callable[[], None] = lambda: None
) -> np.ndarray:  # fmt: skip
    """Rows that no other row of the same key equals or beats in every coordinate, in rising order.

    Of equal rows the first stays. All keys are worked off at once, one undominated row of each per round:
    the first in lexicographic order cannot be beaten by what is left.

    Args:
        key_N: Group of each row.
        coordinates_NC: What is compared; less is better.
        check_time: Called for each such row, as fronts of a hundred thousand rows take minutes; may raise.
    """
    order_N = np.lexsort((np.arange(len(key_N)), *coordinates_NC.T[::-1], key_N))
    key_N, coordinates_NC = key_N[order_N], coordinates_NC[order_N]
    left = np.arange(len(key_N))
    kept: list[np.ndarray] = []
    while len(left):
        check_time()
        first = np.ones(len(left), dtype=bool)
        first[1:] = key_N[left[1:]] != key_N[left[:-1]]
        kept.append(left[first])
        champion = left[first][np.cumsum(first) - 1]
        left = left[(coordinates_NC[left] < coordinates_NC[champion]).any(axis=1)]
    return np.sort(order_N[np.concatenate(kept)]) if kept else np.zeros(0, dtype=np.int64)
