"""What earlier sweeps tell about a new one: other models on this board, or another board of its kind.

Curves of one board are alike: a few directions describe how they differ. The likeness of each earlier sweep at the
observed settings weighs it; the weighted mean and covariance of the sweeps, shrunk towards a stretched copy of the
mean (``log y = a + b·log y_ref``), are then conditioned on the observations.
Axes: J sweeps, A = N observed then Q asked for, F setting.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from greentrain.fits import NOISE, Fit, kernel, kriged

__all__ = ["Aligned", "align_sweep", "foreignness", "likeness", "transfer_fit"]

# Settings this close, as a ratio, are the same.
_SAME = 0.01
_SAME_BOARD = 0.5
# As many sweeps as the stretched copy of the mean counts for.
_PRIOR_SWEEPS = 3.0
_STRETCH = 0.25
_DEPARTURE = 0.08
_ROUGHNESS = 0.01
_LEVEL = 10.0


class Aligned(NamedTuple):
    """An earlier sweep, read at the settings of this one.

    Attributes:
        log_A: Its log values at the settings, observed and asked for.
        scaled: Whether its settings were taken as shares of its own highest one, as between two boards.
    """

    log_A: np.ndarray
    scaled: bool


def align_sweep(s_AF: np.ndarray, s_MF: np.ndarray, z_M: np.ndarray) -> Aligned | None:
    """Read a sweep at other settings.

    Args:
        s_AF: Log settings that are asked for.
        s_MF: Log settings of the sweep.
        z_M: Its log values.

    Returns:
        The values, or None where the sweep covers too little of the range.
    """
    x_DF, back_M = np.unique(s_MF.round(6), axis=0, return_inverse=True)
    back_M = back_M.reshape(-1)
    if len(x_DF) < 2 * s_AF.shape[1] + 1:
        return None
    z_D = np.bincount(back_M, weights=z_M) / np.bincount(back_M)
    apart_DA = np.abs(x_DF[:, None, :] - s_AF[None, :, :]).max(axis=2)
    # A part of this very board's settings is not the whole of another board's.
    same_board = bool((apart_DA.min(axis=1) < _SAME).mean() > _SAME_BOARD)
    for scaled in (False,) if same_board else (False, True):
        x_AF = s_AF - s_AF.max(axis=0) + x_DF.max(axis=0) if scaled else s_AF
        inside_A = ((x_AF >= x_DF.min(axis=0) - _SAME) & (x_AF <= x_DF.max(axis=0) + _SAME)).all(axis=1)
        if inside_A.mean() >= (0.6 if scaled else 0.9):
            apart_AD = np.abs(x_AF[:, None, :] - x_DF[None, :, :]).max(axis=2)
            log_A = z_D[apart_AD.argmin(axis=1)]
            between_A = apart_AD.min(axis=1) >= _SAME
            if between_A.any():
                log_A[between_A] = kriged(x_DF, z_D, x_AF[between_A])
            return Aligned(log_A, scaled)
    return None


def foreignness(log_JA: np.ndarray, z_N: np.ndarray, *, level_counts: bool) -> float:
    """How much farther the observations are from the nearest sweep than sweeps usually are from theirs; 1 if no more.

    Args:
        log_JA: The sweeps, at least two; their first N columns are the observed settings.
        z_N: What was observed.
        level_counts: Whether the level counts too (watts on one board), not only the shape.
    """
    all_JN = np.concatenate([z_N[None, :], log_JA[:, : len(z_N)]])
    if not level_counts:
        all_JN = all_JN - all_JN.mean(axis=1, keepdims=True)
    square_JJ = ((all_JN[:, None, :] - all_JN[None, :, :]) ** 2).mean(axis=2)
    np.fill_diagonal(square_JJ, np.inf)
    own, family = float(square_JJ[0, 1:].min()), float(np.median(square_JJ[1:, 1:].min(axis=1)))
    return max(1.0, float(np.sqrt((own + NOISE**2) / (family + NOISE**2))))


def likeness(log_JA: np.ndarray, z_N: np.ndarray, *, level_counts: bool) -> np.ndarray:
    """Weight of each sweep in (0, 1]: 1 where it passes through the observations, falling with the distance.

    Args:
        log_JA: The sweeps; their first N columns are the observed settings.
        z_N: What was observed.
        level_counts: Whether the level counts too (watts on one board), not only the shape.
    """
    apart_JN = log_JA[:, : len(z_N)] - z_N
    if not level_counts:
        apart_JN = apart_JN - apart_JN.mean(axis=1, keepdims=True)
    square_J = (apart_JN**2).mean(axis=1)
    width = max(float(np.median(square_J)), NOISE**2)
    return np.exp(-0.5 * square_J / width)


def transfer_fit(
    log_JA: np.ndarray, weight_J: np.ndarray, z_N: np.ndarray, x_AF: np.ndarray, noise_N: np.ndarray
) -> Fit:
    """Condition the family of earlier sweeps on the observations; the level is free.

    Args:
        log_JA: Earlier sweeps.
        weight_J: Weight of each.
        z_N: Observed logarithms, at the first N of the settings.
        x_AF: Settings, observed and asked for.
        noise_N: Relative noise of each observation.
    """
    n = len(z_N)
    centred_JA = log_JA - log_JA[:, :n].mean(axis=1, keepdims=True)
    share_J = weight_J / weight_J.sum()
    sweeps = 1.0 / float((share_J**2).sum())
    mean_A = share_J @ centred_JA
    apart_JA = centred_JA - mean_A
    seen_AA = (apart_JA * share_J[:, None]).T @ apart_JA
    kernel_AA = kernel(x_AF, x_AF, x_AF[:n].mean(axis=0))
    guess_AA = _STRETCH**2 * np.outer(mean_A, mean_A) + _DEPARTURE**2 * kernel_AA
    family_AA = (sweeps * seen_AA + _PRIOR_SWEEPS * guess_AA) / (sweeps + _PRIOR_SWEEPS)
    family_AA = family_AA + _ROUGHNESS**2 * kernel_AA + _LEVEL**2
    gain_NQ = np.linalg.solve(family_AA[:n, :n] + np.diag(noise_N**2), family_AA[:n, n:])
    level = float(z_N.mean())
    log_Q = level + mean_A[n:] + (z_N - level - mean_A[:n]) @ gain_NQ
    return Fit(log_Q, family_AA[n:, n:] - family_AA[n:, :n] @ gain_NQ)
