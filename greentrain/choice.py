"""Which fit to trust, and how far: leave-one-out, and replays of earlier sweeps.

Every candidate predicts observations that it has not seen: each observed point from the others, and earlier sweeps from
the same few settings. The candidate under which these were least surprising is chosen. The same errors, in units of the
candidate's own standard deviation, give the width of the band (split conformal prediction), so that it holds 95 % of
what was left out; where there are few, a normal law is mixed in. Axes as in ``fits`` and ``transfer``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from greentrain.fits import Fit, MeanFit, Quantity, Task, monotone_mean, physical_mean, with_residuals, wrong_way_noise
from greentrain.transfer import foreignness, likeness, transfer_fit

__all__ = ["Chosen", "Data", "choose"]

_FOLDS = 10
_REPLAYS = 12
_REPLAYED_POINTS = 32
# Half-normal errors mixed in. More where no observed point could be left out: nothing then tells whether the replayed
# sweeps are alike, and their errors may be too small.
_MIXED, _MIXED_UNCHECKED = 5, 12
# How far the truth may depart from its mean, as a ratio: freely (power keeps closer to physics than time), or hardly.
_DEPARTURE: dict[Quantity, float] = {"time": 0.08, "power": 0.045}
_SLIGHT = 0.03
# From this many observations on, leave-one-out can tell that the physical mean needs no help.
_MANY = 6
# A spline through fewer says no more than a straight line.
_MANY_TO_JOIN = 4

_HALF_NORMAL = tuple(float(value) for value in (0.05, 0.16, 0.26, 0.38, 0.49, 0.61, 0.74, 0.89, 1.05, 1.26, 1.53, 2.04))
_COVERAGE, _Z_95 = 0.95, 1.96


class Data(NamedTuple):
    """One quantity over the settings.

    Attributes:
        task: What is fitted.
        x_NF: Observed settings, all different.
        z_N: Observed logarithms.
        noise_N: Least relative noise of each; large for an outlier.
        count_N: Measurements behind each.
        repeat_noise: Relative noise of a single measurement that repeats have shown, or that is assumed.
        x_QF: Settings that are asked for.
        prior_JA: Earlier sweeps at the observed, then the asked-for settings.
        level_counts: Whether the level of earlier sweeps says something.
    """

    task: Task
    x_NF: np.ndarray
    z_N: np.ndarray
    noise_N: np.ndarray
    count_N: np.ndarray
    repeat_noise: float
    x_QF: np.ndarray
    prior_JA: np.ndarray
    level_counts: bool


class Chosen(NamedTuple):
    """The chosen fit.

    Attributes:
        name: The candidate.
        log_Q: Its mean at the asked-for settings.
        cov_QQ: Covariance of the true values, widened like the band.
        half_Q: Half-width of the band that holds 95 % of new measurements, as a log ratio.
        error_L: Leave-one-out errors, log ratios of predicted over observed.
        left_out_L: Which observation each belongs to.
        sd_L: The candidate's own standard deviation there.
    """

    name: str
    log_Q: np.ndarray
    cov_QQ: np.ndarray
    half_Q: np.ndarray
    error_L: np.ndarray
    left_out_L: tuple[int, ...]
    sd_L: np.ndarray


class _Errors(NamedTuple):
    error: np.ndarray
    sd: np.ndarray
    weight: np.ndarray


def choose(data: Data) -> Chosen:
    """The candidate with the least surprising errors on what it had not seen, with a calibrated band."""
    names = _candidates(data)
    left_out = _left_out(data.x_NF)
    own, past = _leave_one_out(data, names, left_out), _replays(data, names)
    # Where every sweep differs more from this one than from each other, replays are too good.
    foreign = foreignness(data.prior_JA, data.z_N, level_counts=data.level_counts) if len(data.prior_JA) > 1 else 1.0
    surprise = {name: _surprise([own[name], past[name]]) for name in names}
    if "transfer" in surprise:
        surprise["transfer"] += float(np.log(foreign))
    name = min(names, key=lambda candidate: (round(surprise[candidate], 9), names.index(candidate)))
    fit = _fits(data, [name])[name]
    scale = _band_scale(own[name], past[name]) * (foreign if name == "transfer" else 1.0)
    half_Q = scale * _Z_95 * np.sqrt(np.maximum(np.diag(fit.cov_QQ), 0.0) + fit.noise**2)
    return Chosen(name, fit.log_Q, fit.cov_QQ * scale**2, half_Q, own[name].error, left_out, own[name].sd)


def _candidates(data: Data) -> list[str]:
    """Names of the candidates; the first is taken where nothing was left out."""
    n = len(data.z_N)
    return [
        *(["transfer"] if len(data.prior_JA) else []),
        "gp",
        *(["physical"] if n >= _MANY else []),
        *(["monotone"] if n >= _MANY_TO_JOIN and data.x_NF.shape[1] == 1 else []),
    ]


def _fits(data: Data, names: Sequence[str]) -> dict[str, Fit]:
    noise = max(data.repeat_noise, wrong_way_noise(data.task, data.x_NF, data.z_N))
    noise_N = np.maximum(data.noise_N, noise / np.sqrt(data.count_N))

    def around(mean: MeanFit, amplitude: float) -> Fit:
        return with_residuals(mean, data.x_NF, data.z_N, data.x_QF, amplitude=amplitude, noise_N=noise_N)

    found: dict[str, Fit] = {}
    if "transfer" in names:
        weight_J = likeness(data.prior_JA, data.z_N, level_counts=data.level_counts)
        x_AF = np.concatenate([data.x_NF, data.x_QF])
        found["transfer"] = transfer_fit(data.prior_JA, weight_J, data.z_N, x_AF, noise_N)
    if "gp" in names or "physical" in names:
        physical = physical_mean(data.task, data.x_NF, data.z_N, data.x_QF)
        found |= {"gp": around(physical, _DEPARTURE[data.task.quantity]), "physical": around(physical, _SLIGHT)}
    if "monotone" in names:
        monotone = monotone_mean(data.task, data.x_NF, data.z_N, data.x_QF)
        found["monotone"] = around(monotone, _DEPARTURE[data.task.quantity])
    return {name: found[name]._replace(noise=noise) for name in names}


def _left_out(x_NF: np.ndarray) -> tuple[int, ...]:
    """Points whose loss leaves the measured range as it is; at most ten, evenly taken."""
    low_F, high_F = x_NF.min(axis=0), x_NF.max(axis=0)
    inner = [
        index
        for index in range(len(x_NF))
        if len(x_NF) > 2
        and (np.delete(x_NF, index, axis=0).min(axis=0) <= low_F + 1e-9).all()
        and (np.delete(x_NF, index, axis=0).max(axis=0) >= high_F - 1e-9).all()
    ]
    if len(inner) <= _FOLDS:
        return tuple(inner)
    return tuple(inner[position] for position in np.linspace(0, len(inner) - 1, _FOLDS).round().astype(int))


def _leave_one_out(data: Data, names: Sequence[str], left_out: Sequence[int]) -> dict[str, _Errors]:
    errors: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    for index in left_out:
        keep = np.arange(len(data.z_N)) != index
        part = data._replace(
            x_NF=data.x_NF[keep],
            z_N=data.z_N[keep],
            noise_N=data.noise_N[keep],
            count_N=data.count_N[keep],
            x_QF=data.x_NF[index : index + 1],
            prior_JA=data.prior_JA[:, np.append(np.flatnonzero(keep), index)],
        )
        for name, fit in _fits(part, names).items():
            variance = max(float(fit.cov_QQ[0, 0]), 0.0) + max(float(data.noise_N[index]), fit.noise) ** 2
            errors[name].append((float(fit.log_Q[0] - data.z_N[index]), variance**0.5))
    return {
        name: _Errors(np.asarray([row[0] for row in rows]), np.asarray([row[1] for row in rows]), np.ones(len(rows)))
        for name, rows in errors.items()
    }


def _replays(data: Data, names: Sequence[str]) -> dict[str, _Errors]:
    """Errors of predicting the most alike earlier sweeps from the same settings; one counts as one observation."""
    none = _Errors(np.zeros(0), np.zeros(0), np.zeros(0))
    apart_QN = np.abs(data.x_QF[:, None, :] - data.x_NF[None, :, :]).max(axis=2)
    unseen_Q = apart_QN.min(axis=1) > 1e-9
    if len(data.prior_JA) < 2 or not unseen_Q.any():
        return dict.fromkeys(names, none)
    # Few of many points are enough for a spread.
    told = np.flatnonzero(unseen_Q)[:: 1 + (int(unseen_Q.sum()) - 1) // _REPLAYED_POINTS]
    n, count = len(data.z_N), len(told)
    columns = np.append(np.arange(n), n + told)
    weight_J = likeness(data.prior_JA, data.z_N, level_counts=data.level_counts)
    errors: dict[str, list[_Errors]] = {name: [] for name in names}
    for sweep in np.argsort(-weight_J, kind="stable")[:_REPLAYS]:
        log_A = data.prior_JA[sweep]
        part = data._replace(z_N=log_A[:n], x_QF=data.x_QF[told])
        part = part._replace(prior_JA=np.delete(data.prior_JA, sweep, axis=0)[:, columns])
        for name, fit in _fits(part, names).items():
            sd_Q = np.sqrt(np.maximum(np.diag(fit.cov_QQ), 0.0) + fit.noise**2)
            errors[name].append(_Errors(fit.log_Q - log_A[n:][told], sd_Q, np.full(count, weight_J[sweep] / count)))
    return {
        name: _Errors(*(np.concatenate(column) for column in zip(*rows, strict=True))) for name, rows in errors.items()
    }


def _surprise(parts: Sequence[_Errors]) -> float:
    """Mean negative log density of a Student law (4 degrees of freedom), which one outlier does not rule."""
    error, sd, weight = (np.concatenate([getattr(part, field) for part in parts]) for field in _Errors._fields)
    if not len(error):
        return 0.0
    return float(np.average(np.log(sd) + 2.5 * np.log1p((error / sd) ** 2 / 4), weights=weight))


def _band_scale(own: _Errors, past: _Errors) -> float:
    """Factor on the standard deviation that makes ±1.96 of them hold 95 % of what was left out."""
    parts = (own, past)
    score = np.concatenate([*(np.abs(part.error) / part.sd for part in parts), np.asarray(_HALF_NORMAL)])
    mixed = _MIXED if len(own.error) else _MIXED_UNCHECKED
    weight = np.concatenate([*(part.weight for part in parts), np.full(len(_HALF_NORMAL), mixed / len(_HALF_NORMAL))])
    order = np.argsort(score)
    passed = (np.cumsum(weight[order]) - 0.5 * weight[order]) / weight.sum()
    return float(np.interp(_COVERAGE, passed, score[order])) / _Z_95
