"""Time and power of every operating point from a few of them, on synthetic boards whose truth is known."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from greentrain.device import OperatingPoint
from greentrain.errors import UsageError
from greentrain.point_model import PointObservation, PointPosterior, first_points, fit_points

CLOCKS = [OperatingPoint(name=f"g{index}", gpu_hz=1.2e8 + 1e8 * index) for index in range(12)]
CAPS = [OperatingPoint(name=f"c{cap}", cap_w=float(cap)) for cap in range(100, 301, 25)]
GRID = [
    OperatingPoint(name=f"g{gpu}m{mem}", gpu_hz=gpu * 1e8, mem_hz=mem * 1e8)
    for gpu in (2, 4, 6, 8, 10, 12)
    for mem in (6, 12, 18)
]


def clocked(
    point: OperatingPoint, *, fixed_s: float = 0.2, work_s: float = 1.0, idle_w: float = 3.0, top_hz: float = 1.22e9
) -> PointObservation:
    """A board whose time is a + b/f and whose power is idle + c·f³."""
    assert point.gpu_hz is not None
    share = point.gpu_hz / top_hz
    mem = 0.0 if point.mem_hz is None else 0.3 * 18e8 / point.mem_hz
    return PointObservation(point, fixed_s + work_s / share + mem, idle_w + 4 * share + 10 * share**3)


def capped(point: OperatingPoint, *, demand_w: float = 210.0) -> PointObservation:
    """A GPU that draws at most its cap and slows down below its demand."""
    assert point.cap_w is not None
    power_w = min(point.cap_w * 0.98, demand_w)
    return PointObservation(point, (demand_w / power_w) ** 1.2, power_w)


def fit_few(
    points: Sequence[OperatingPoint], truth: Callable[[OperatingPoint], PointObservation], count: int
) -> tuple[PointPosterior, np.ndarray, np.ndarray]:
    fit = fit_points(points, [truth(point) for point in first_points(points, count)])
    seen = [truth(point) for point in points]
    return fit, np.asarray([one.time_s for one in seen]), np.asarray([one.power_w for one in seen])


@pytest.mark.parametrize(
    ("points", "truth", "count", "worst"),
    [(CLOCKS, clocked, 3, 0.05), (CAPS, capped, 4, 0.06), (GRID, clocked, 5, 0.08)],
)
def test_few_points_tell_the_rest(
    points: Sequence[OperatingPoint], truth: Callable[[OperatingPoint], PointObservation], count: int, worst: float
) -> None:
    fit, time_s_P, power_w_P = fit_few(points, truth, count)
    assert np.abs(fit.time_s_P / time_s_P - 1).max() < worst
    assert np.abs(fit.power_w_P / power_w_P - 1).max() < worst
    assert ((fit.time_low_s_P < time_s_P) & (time_s_P < fit.time_high_s_P)).all()
    assert ((fit.power_low_w_P < power_w_P) & (power_w_P < fit.power_high_w_P)).all()
    assert fit.energy_j_P == pytest.approx(fit.time_s_P * fit.power_w_P)
    assert not any(fit.extrapolated_P)
    assert fit.warnings == ()


def test_more_points_narrow_the_band_and_name_their_error() -> None:
    few, many = (fit_few(CLOCKS, clocked, count)[0] for count in (3, 8))
    assert (many.time_high_s_P / many.time_low_s_P).max() < (few.time_high_s_P / few.time_low_s_P).max()
    assert many.loo_time_ratio is not None
    assert many.loo_time_ratio < 0.02
    assert "leave-one-out" in many.time_fit
    assert fit_few(CLOCKS, clocked, 2)[0].loo_time_ratio is None


def test_draws_are_joint_and_reproducible() -> None:
    fit, _, _ = fit_few(CLOCKS, clocked, 4)
    time_s_SP, power_w_SP = fit.draws(4000, seed=3)
    assert time_s_SP.shape == power_w_SP.shape == (4000, len(CLOCKS))
    again, _ = fit.draws(4000, seed=3)
    assert (again == time_s_SP).all()
    assert (time_s_SP != fit.draws(4000, seed=4)[0]).any()
    assert np.median(time_s_SP, axis=0) == pytest.approx(fit.time_s_P, rel=0.02)
    # Neighbours that were not measured err together.
    measured = {point.name for point in first_points(CLOCKS, 4)}
    left = next(i for i in range(11) if not {CLOCKS[i].name, CLOCKS[i + 1].name} & measured)
    assert np.corrcoef(np.log(time_s_SP[:, left]), np.log(time_s_SP[:, left + 1]))[0, 1] > 0.5


def test_draws_of_many_points_have_the_covariance_of_the_posterior() -> None:
    many = [
        OperatingPoint(name=f"c{cpu}g{gpu}", cpu_hz=cpu * 1e8, gpu_hz=gpu * 1e8)
        for cpu in range(4, 24)
        for gpu in range(2, 18)
    ]

    def truth(point: OperatingPoint) -> PointObservation:
        gpu, cpu = (point.gpu_hz or 0) / 17e8, (point.cpu_hz or 0) / 23e8
        return PointObservation(point, 0.1 + 1 / gpu + 0.3 / cpu, 3 + 9 * gpu**3 + 2 * cpu)

    fit, time_s_P, _ = fit_few(many, truth, 6)
    assert np.median(np.abs(fit.time_s_P / time_s_P - 1)) < 0.05
    log_SP = np.log(fit.draws(3000)[0])
    told, drawn = np.sqrt(np.diag(fit.time_cov_PP)), log_SP.std(axis=0)
    assert np.abs(drawn - told).max() < 0.1 * told.max()


def test_draws_stay_within_the_band_about_as_often_as_it_says() -> None:
    fit, _, _ = fit_few(CLOCKS, clocked, 3)
    _, power_w_SP = fit.draws(4000)
    inside = (fit.power_low_w_P <= power_w_SP) & (power_w_SP <= fit.power_high_w_P)
    # The band also holds the noise of a new measurement, the draws do not.
    assert inside.mean() >= 0.94


def test_noise_is_covered_by_the_band() -> None:
    random = np.random.default_rng(1)
    inside: list[np.ndarray] = []
    for _ in range(30):
        noisy = [
            PointObservation(one.point, one.time_s * math.exp(random.normal(0, 0.02)), one.power_w)
            for one in map(clocked, CLOCKS)
        ]
        asked = first_points(CLOCKS, 5)
        fit = fit_points(CLOCKS, [one for one in noisy if one.point in asked])
        time_s_P = np.asarray([one.time_s for one in noisy])
        held = np.asarray([point not in asked for point in CLOCKS])
        inside.append(((fit.time_low_s_P <= time_s_P) & (time_s_P <= fit.time_high_s_P))[held])
    assert np.concatenate(inside).mean() > 0.9


def test_an_earlier_sweep_of_this_board_helps_a_single_probe() -> None:
    earlier = [[clocked(point, fixed_s=fixed_s) for point in CLOCKS] for fixed_s in (0.3, 0.5, 0.8, 1.0)]
    truth = np.asarray([clocked(point, fixed_s=0.6).time_s for point in CLOCKS])
    probe = [clocked(CLOCKS[-1], fixed_s=0.6)]
    blind, told = (fit_points(CLOCKS, probe, prior=prior) for prior in ((), earlier))
    blind_error, told_error = (np.abs(fit.time_s_P / truth - 1).max() for fit in (blind, told))
    assert told_error < 0.3 < blind_error
    assert told.time_fit.startswith("transfer")
    assert any(warning.startswith("one-point:") for warning in told.warnings)
    assert sum(told.extrapolated_P) == len(CLOCKS) - 1


def test_a_board_of_its_kind_is_read_as_shares() -> None:
    other = [OperatingPoint(name=point.name, gpu_hz=0.5 * (point.gpu_hz or 0)) for point in CLOCKS]
    earlier = [[clocked(point, fixed_s=fixed_s, top_hz=0.61e9) for point in other] for fixed_s in (0.3, 0.5, 0.8)]
    seen = [clocked(point, fixed_s=0.5) for point in first_points(CLOCKS, 2)]
    fit = fit_points(CLOCKS, seen, prior=earlier)
    truth = np.asarray([clocked(point, fixed_s=0.5).time_s for point in CLOCKS])
    assert np.abs(fit.time_s_P / truth - 1).max() < 0.05
    assert any(warning.startswith("scaled-sweep:") for warning in fit.warnings)


def test_an_earlier_sweep_of_something_else_does_not_mislead() -> None:
    flat = [[clocked(point, fixed_s=fixed_s, work_s=0.01) for point in CLOCKS] for fixed_s in (1.0, 1.1, 1.2, 1.3)]
    seen = [clocked(point) for point in first_points(CLOCKS, 3)]
    fit = fit_points(CLOCKS, seen, prior=flat)
    truth = np.asarray([clocked(point).time_s for point in CLOCKS])
    assert np.abs(fit.time_s_P / truth - 1).max() < 0.06
    assert ((fit.time_low_s_P < truth) & (truth < fit.time_high_s_P)).all()


def test_bad_earlier_sweeps_are_left_out_and_told() -> None:
    bad = [PointObservation(point, math.nan, 5.0) for point in CLOCKS]
    short = [clocked(point) for point in CLOCKS[:2]]
    fit = fit_points(CLOCKS, [clocked(point) for point in first_points(CLOCKS, 4)], prior=[bad, short])
    assert [warning.split(":")[0] for warning in fit.warnings] == ["earlier-sweep", "earlier-sweep"]
    assert np.isfinite(fit.time_s_P).all()


def test_power_of_earlier_sweeps_in_milliwatts_is_told() -> None:
    earlier = [[one._replace(power_w=one.power_w * 1e3) for one in map(clocked, CLOCKS)]] * 2
    fit = fit_points(CLOCKS, [clocked(point) for point in first_points(CLOCKS, 4)], prior=earlier)
    assert any(warning.startswith("power-unit:") for warning in fit.warnings)


def test_outside_the_measured_settings_it_says_so_and_widens() -> None:
    fit = fit_points(CLOCKS, [clocked(point) for point in CLOCKS[6:10]])
    assert fit.extrapolated_P == tuple(index < 6 or index > 9 for index in range(12))
    assert fit.warnings[0].startswith("extrapolated: g0, g1, g2, g3 and 4 more lie outside")
    ratio_P = fit.time_high_s_P / fit.time_s_P
    assert ratio_P[0] > ratio_P[7]


def test_one_point_alone() -> None:
    point = OperatingPoint(name="current")
    fit = fit_points([point], [PointObservation(point, 0.5, 8.0)])
    assert (fit.time_s_P[0], fit.power_w_P[0]) == (pytest.approx(0.5), pytest.approx(8.0))
    assert fit.time_low_s_P[0] < 0.5 < fit.time_high_s_P[0]
    assert fit.warnings == ()


def test_repeats_of_one_point_are_averaged() -> None:
    seen = [clocked(point) for point in first_points(CLOCKS, 3)]
    twice = [one._replace(time_s=one.time_s * factor) for one in seen for factor in (0.99, 1.01)]
    assert fit_points(CLOCKS, twice).time_s_P == pytest.approx(fit_points(CLOCKS, seen).time_s_P, rel=0.01)


def test_points_that_differ_in_name_only_are_told() -> None:
    twins = [OperatingPoint(name="4-cores", gpu_hz=1e9), OperatingPoint(name="2-cores", gpu_hz=1e9)]
    fit = fit_points(twins, [PointObservation(twins[0], 1.0, 9.0), PointObservation(twins[1], 2.0, 7.0)])
    assert fit.warnings[0].startswith("same-settings:")
    assert fit.time_low_s_P[0] < 1.05
    assert fit.time_high_s_P[0] > 1.9


def test_an_outlier_is_named_and_does_not_bend_the_rest() -> None:
    seen = [clocked(point) for point in first_points(CLOCKS, 7)]
    odd = next(index for index, one in enumerate(seen) if one.point.name not in ("g0", "g11"))
    seen[odd] = seen[odd]._replace(power_w=seen[odd].power_w * 4)
    fit = fit_points(CLOCKS, seen)
    named = [warning for warning in fit.warnings if warning.startswith("outlier: power at ")]
    assert any(seen[odd].point.name in warning for warning in named)
    truth = np.asarray([clocked(point).power_w for point in CLOCKS])
    assert np.median(np.abs(fit.power_w_P / truth - 1)) < 0.15


@pytest.mark.parametrize("value", [math.nan, math.inf, 0.0, -1.0])
@pytest.mark.parametrize("field", ["time_s", "power_w"])
def test_what_cannot_be_is_refused(field: str, value: float) -> None:
    seen = [clocked(point) for point in first_points(CLOCKS, 3)]
    seen[1] = seen[1]._replace(**{field: value})
    with pytest.raises(UsageError, match=f"'g0': {field} is .*Measure this point again"):
        fit_points(CLOCKS, seen)


@pytest.mark.parametrize(("points", "seen"), [(CLOCKS, []), ([], [clocked(CLOCKS[0])])])
def test_nothing_is_refused(points: list[OperatingPoint], seen: list[PointObservation]) -> None:
    with pytest.raises(UsageError, match="expected one of each or more"):
        fit_points(points, seen)


@pytest.mark.parametrize(
    ("field", "factor", "units"),
    [("time_s", 1e3, "milliseconds"), ("time_s", 1e-3, "milliseconds"), ("power_w", 1e3, "milliwatts"),
     ("power_w", 1e-3, "milliwatts")],
)  # fmt: skip
def test_a_unit_that_slipped_is_refused(field: str, factor: float, units: str) -> None:
    seen = [clocked(point) for point in first_points(CLOCKS, 4)]
    value = seen[2].time_s if field == "time_s" else seen[2].power_w
    seen[2] = seen[2]._replace(**{field: value * factor})
    with pytest.raises(UsageError, match=units):
        fit_points(CLOCKS, seen)


def test_clocks_and_caps_in_other_units_are_refused_or_told() -> None:
    mixed = [OperatingPoint(name="hz", gpu_hz=1.2e9), OperatingPoint(name="khz", gpu_hz=9e5)]
    with pytest.raises(UsageError, match="kHz and Hz"):
        fit_points(mixed, [PointObservation(mixed[0], 1.0, 5.0)])
    khz = [OperatingPoint(name=point.name, gpu_hz=(point.gpu_hz or 0) / 1e3) for point in CLOCKS]
    fit = fit_points(khz, [clocked(point, top_hz=1.22e6) for point in first_points(khz, 3)])
    assert fit.warnings[0].startswith("clock-unit:")
    with pytest.raises(UsageError, match="under a cap of 200 W"):
        fit_points(CAPS, [PointObservation(CAPS[4], 1.0, 190e3)])
    assert any(
        "milliwatts" in warning for warning in fit_points(CLOCKS, [PointObservation(CLOCKS[0], 1, 8e3)]).warnings
    )


def test_power_above_the_cap_is_told() -> None:
    fit = fit_points(CAPS, [PointObservation(CAPS[0], 1.0, 180.0), PointObservation(CAPS[-1], 0.9, 240.0)])
    assert fit.warnings[0].startswith("above-cap: c100 drew")


def test_what_goes_the_wrong_way_is_told_and_the_band_holds_it() -> None:
    seen = [
        PointObservation(point, 1.0 + 0.2 * index, 30.0 - 5 * index)
        for index, point in enumerate(sorted(first_points(CLOCKS, 5), key=lambda point: point.gpu_hz or 0))
    ]
    fit = fit_points(CLOCKS, seen)
    assert {warning.split(":")[0] for warning in fit.warnings} >= {"falling-power", "rising-time"}
    for one in seen:
        index = CLOCKS.index(one.point)
        assert fit.power_low_w_P[index] < one.power_w < fit.power_high_w_P[index]


def test_first_points_span_the_range() -> None:
    assert [point.name for point in first_points(CLOCKS, 2)] == ["g11", "g0"]
    three = first_points(CLOCKS, 3)
    assert three[:2] == first_points(CLOCKS, 2)
    assert three[2].name in ("g3", "g4", "g5", "g6")
    assert len(first_points(CLOCKS, 99)) == len(CLOCKS)
    assert first_points([], 3) == ()
    assert first_points(CLOCKS, 0) == ()
    assert {point.name for point in first_points(GRID, 4)} == {"g2m6", "g12m6", "g2m18", "g12m18"}


def test_first_points_take_each_setting_once() -> None:
    twins = [OperatingPoint(name=name, gpu_hz=1e9) for name in ("a", "b")]
    assert [point.name for point in first_points(twins, 2)] == ["a"]


@settings(max_examples=25, deadline=None)
@given(
    fixed_s=st.floats(0.0, 3.0),
    work_s=st.floats(0.01, 3.0),
    idle_w=st.floats(0.5, 20.0),
    count=st.integers(1, 6),
    scale=st.floats(0.01, 100.0),
)
def test_every_fit_is_finite_positive_and_scales_with_time(
    fixed_s: float, work_s: float, idle_w: float, count: int, scale: float
) -> None:
    seen = [clocked(point, fixed_s=fixed_s, work_s=work_s, idle_w=idle_w) for point in first_points(CLOCKS, count)]
    fit = fit_points(CLOCKS, seen)
    for low, middle, high in (
        (fit.time_low_s_P, fit.time_s_P, fit.time_high_s_P),
        (fit.power_low_w_P, fit.power_w_P, fit.power_high_w_P),
        (fit.energy_low_j_P, fit.energy_j_P, fit.energy_high_j_P),
    ):
        assert (np.isfinite(low) & (low > 0) & (low <= middle) & (middle <= high) & np.isfinite(high)).all()
    scaled = fit_points(CLOCKS, [one._replace(time_s=one.time_s * scale) for one in seen])
    assert scaled.time_s_P == pytest.approx(fit.time_s_P * scale, rel=1e-3)
