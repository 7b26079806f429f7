"""Joules of one channel over a window, from time-stamped samples. Pure functions, no clock, no thread.

Axis legend: N = samples.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from greentrain.reading import Channel

__all__ = ["ChannelEnergy", "counter_energy", "group_means", "power_energy"]


@dataclass(frozen=True, kw_only=True)
class ChannelEnergy:
    """What one channel says of a window.

    Attributes:
        energy_j: Joules of the time with data; None when there was none.
        systematic_j: ± from gain and offset, joules.
        sampling_j: ± from looking only now and then, joules.
        gap_s: Seconds of the window without data.
    """

    energy_j: float | None
    systematic_j: float
    sampling_j: float
    gap_s: float


def power_energy(
    t_s: Sequence[float], power_w: Sequence[float], start_s: float, stop_s: float, *, channel: Channel, gap_s: float
) -> ChannelEnergy:
    """Integrate watts by trapezoids, interpolated at both ends of the window.

    A power that stepped anywhere between two samples moves the true energy by at most half of
    ``|ΔP|·Δt`` from the trapezoid, evenly spread: a variance of ``(ΔP·Δt)²/12``, of which two standard
    deviations are stated.

    A sensor that refreshes every ``update_s`` answers with a value that is up to so old, half of it on
    average: each value is placed at that instant, and the last one held until it was read.

    Args:
        t_s: Instants, rising, shape (N,).
        power_w: Watts, NaN where the sensor did not answer, shape (N,).
        start_s: Start of the window.
        stop_s: Stop of the window, not before its start.
        channel: Stated errors.
        gap_s: Neighbouring samples further apart than this enclose a gap.
    """
    t_N, w_N = _answered(t_s, power_w)
    if len(t_N) < 2:
        return _nothing(stop_s - start_s)
    t_N, w_N = _without_lag(t_N, w_N, channel.update_s)
    wide_N = np.diff(t_N)
    low_N, high_N = np.clip(t_N[:-1], start_s, stop_s), np.clip(t_N[1:], start_s, stop_s)
    seen_N = (wide_N <= gap_s) & (high_N > low_N)
    if start_s == stop_s:
        return _instant(bool(((t_N[:-1] <= start_s) & (start_s <= t_N[1:]) & (wide_N <= gap_s)).any()))
    if not seen_N.any():
        return _nothing(stop_s - start_s)
    t0_N, w0_N, rise_N = t_N[:-1][seen_N], w_N[:-1][seen_N], np.diff(w_N)[seen_N]
    low_N, high_N, wide_N = low_N[seen_N], high_N[seen_N], wide_N[seen_N]
    middle_w_N = w0_N + rise_N * ((low_N + high_N) / 2 - t0_N) / wide_N
    energy_j = float((middle_w_N * (high_N - low_N)).sum())
    covered_s = float((high_N - low_N).sum())
    # A sensor that refreshes less often than it is read hides steps for as long as its refresh.
    hidden_s_N = np.maximum(wide_N, channel.update_s)
    sampling_j = 2 * math.sqrt(float(((rise_N * hidden_s_N) ** 2).sum()) / 12)
    return ChannelEnergy(
        energy_j=energy_j,
        systematic_j=channel.gain_error_ratio * abs(energy_j) + channel.offset_error_w * covered_s,
        sampling_j=sampling_j,
        gap_s=_uncovered_s(stop_s - start_s, covered_s),
    )


def counter_energy(
    t_s: Sequence[float], energy_j: Sequence[float], start_s: float, stop_s: float, *, channel: Channel, gap_s: float
) -> ChannelEnergy:
    """Difference of a rising counter, interpolated at both ends of the window.

    A counter keeps counting while nobody looks, so a missed sample is no gap; a fall (its reset) and a
    silence longer than ``gap_s`` are. At each end the true value lies between the two samples around it:
    stated is ``2·w·(1−w)`` of their difference, w being the place in between, plus the energy of one
    refresh of the sensor.

    Args:
        t_s: Instants, rising, shape (N,).
        energy_j: Joules, NaN where the counter did not answer, shape (N,).
        start_s: Start of the window.
        stop_s: Stop of the window, not before its start.
        channel: Stated errors.
        gap_s: Neighbouring samples further apart than this enclose a gap.
    """
    t_N, e_N = _answered(t_s, energy_j)
    if len(t_N) < 2:
        return _nothing(stop_s - start_s)
    wide_N, rise_N = np.diff(t_N), np.diff(e_N)
    sound_N = (wide_N <= gap_s) & (rise_N >= 0)
    if start_s == stop_s:
        return _instant(bool(((t_N[:-1] <= start_s) & (start_s <= t_N[1:]) & sound_N).any()))
    low_N, high_N = np.clip(t_N[:-1], start_s, stop_s), np.clip(t_N[1:], start_s, stop_s)
    seen_N = sound_N & (high_N > low_N)
    if not seen_N.any():
        return _nothing(stop_s - start_s)
    part_N = (high_N - low_N)[seen_N] / wide_N[seen_N]
    rise_N, wide_N = rise_N[seen_N], wide_N[seen_N]
    total_j = float((rise_N * part_N).sum())
    covered_s = float((high_N - low_N)[seen_N].sum())
    refresh_j = channel.update_s * float((rise_N / np.maximum(wide_N, max(channel.update_s, 1e-9))).max())
    # Inside the window every part is 1, so that only its ends contribute.
    ends_j = float((2 * rise_N * part_N * (1 - part_N)).sum())
    return ChannelEnergy(
        energy_j=total_j,
        systematic_j=channel.gain_error_ratio * total_j + channel.offset_error_w * covered_s,
        sampling_j=refresh_j + ends_j,
        gap_s=_uncovered_s(stop_s - start_s, covered_s),
    )


def group_means(values: Sequence[float], group_n: int) -> np.ndarray:
    """Means over groups of neighbours, NaN left out; NaN for a group that is nothing else. Keeps the integral.

    Args:
        values: Instants, watts or joules, shape (N,); N is a multiple of the group.
        group_n: Samples per group.
    """
    value_GN = np.asarray(values, dtype=np.float64).reshape(-1, group_n)
    known_GN = np.isfinite(value_GN)
    known_n_G = known_GN.sum(axis=1)
    sum_G = np.where(known_GN, value_GN, 0.0).sum(axis=1)
    return np.where(known_n_G > 0, sum_G / np.maximum(known_n_G, 1), np.nan)


def _answered(t_s: Sequence[float], value: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    t_N, value_N = np.asarray(t_s, dtype=np.float64), np.asarray(value, dtype=np.float64)
    known_N = np.isfinite(value_N)
    return t_N[known_N], value_N[known_N]


def _without_lag(t_N: np.ndarray, power_w_N: np.ndarray, update_s: float) -> tuple[np.ndarray, np.ndarray]:
    if update_s <= 0:
        return t_N, power_w_N
    return np.append(t_N - update_s / 2, t_N[-1]), np.append(power_w_N, power_w_N[-1])


def _uncovered_s(window_s: float, covered_s: float) -> float:
    """Rounding of the covered parts must not look like a gap."""
    uncovered_s = window_s - covered_s
    return uncovered_s if uncovered_s > 1e-9 * max(window_s, 1.0) else 0.0


def _nothing(window_s: float) -> ChannelEnergy:
    return ChannelEnergy(energy_j=None, systematic_j=0.0, sampling_j=0.0, gap_s=window_s)


def _instant(known: bool) -> ChannelEnergy:
    """A window without length holds no energy, where the sensor was alive."""
    return ChannelEnergy(energy_j=0.0 if known else None, systematic_j=0.0, sampling_j=0.0, gap_s=0.0)
