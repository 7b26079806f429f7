from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from greentrain.errors import UsageError
from greentrain.power import PowerCurve, PowerModel, fit_power_curve, physical_curve


def test_physical_curve_goes_through_both_watts() -> None:
    curve = physical_curve(point="15W", idle_w=2.0, busy_w=10.0, cubic_share=0.5, fit="test")
    assert (curve.idle_w, curve.busy_w) == (2.0, 10.0)
    # 2 + 4·x + 4·x³ at x = 0.5
    assert curve.power_w(0.5) == pytest.approx(4.5)
    assert curve.band_w is None
    with pytest.raises(ValueError, match="busy_w is 1"):
        physical_curve(point="15W", idle_w=2.0, busy_w=1.0, cubic_share=0.5, fit="test")


@given(
    idle_w=st.floats(0, 100),
    rise_w=st.floats(0, 300),
    cubic=st.floats(0, 1),
    low=st.floats(-0.5, 1.5),
    high=st.floats(-0.5, 1.5),
)
def test_power_rises_with_the_share_and_is_held_at_the_ends(
    idle_w: float, rise_w: float, cubic: float, low: float, high: float
) -> None:
    curve = physical_curve(point="p", idle_w=idle_w, busy_w=idle_w + rise_w, cubic_share=cubic, fit="test")
    low, high = sorted((low, high))
    assert curve.idle_w <= curve.power_w(low) <= curve.power_w(high) + 1e-9
    assert curve.power_w(high) <= curve.busy_w + 1e-9


@given(idle_w=st.floats(0.5, 20), linear_w=st.floats(0, 50), cubic_w=st.floats(0, 50))
def test_fit_finds_the_curve_behind_the_points(idle_w: float, linear_w: float, cubic_w: float) -> None:
    share = [0.0, 0.25, 0.5, 0.75, 1.0]
    watts = [idle_w + linear_w * x + cubic_w * x**3 for x in share]
    curve = fit_power_curve(point="p", share=share, power_w=watts)
    assert curve.points_n == 5
    assert curve.band_w == pytest.approx(0.0, abs=1e-6)
    assert [curve.power_w(x) for x in share] == pytest.approx(watts, abs=1e-5)


def test_noise_widens_the_band_and_the_curve_still_rises() -> None:
    share = [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    watts = [2.1, 3.0, 3.2, 5.0, 5.4, 8.3]
    curve = fit_power_curve(point="p", share=share, power_w=watts)
    assert list(curve.power_w_X) == sorted(curve.power_w_X)
    assert curve.band_w is not None
    assert 0.2 < curve.band_w < 2.5
    assert all(abs(curve.power_w(x) - seen_w) < curve.band_w for x, seen_w in zip(share, watts, strict=True))


def test_two_points_have_no_band() -> None:
    curve = fit_power_curve(point="p", share=[0.0, 1.0], power_w=[2.0, 8.0])
    assert curve.band_w is None
    assert (curve.idle_w, curve.busy_w) == (pytest.approx(2.0), pytest.approx(8.0))


@pytest.mark.parametrize(
    ("share", "watts"),
    [([0.5], [3.0]), ([0.5, 0.5], [3.0, 4.0]), ([0.0, 1.0], [3.0]), ([0.0, 1.2], [1.0, 2.0]),
     ([0.0, 1.0], [float("nan"), 2.0]), ([0.0, 1.0], [-1.0, 2.0])],
)  # fmt: skip
def test_fit_refuses(share: list[float], watts: list[float]) -> None:
    with pytest.raises(UsageError, match="power curve 'p'"):
        fit_power_curve(point="p", share=share, power_w=watts)


@pytest.mark.parametrize(
    ("share", "watts", "sentence"),
    [
        ((0.0, 1.0), (1.0,), "as many watts as shares"),
        ((0.0,), (1.0,), "two or more"),
        ((0.0, 0.5), (1.0, 2.0), "must rise from 0 to 1"),
        ((0.0, 0.6, 0.6, 1.0), (1.0, 2.0, 2.0, 3.0), "must rise from 0 to 1"),
        ((0.0, 1.0), (1.0, float("inf")), "power_w is inf"),
        ((0.0, 1.0), (-1.0, 2.0), "power_w is -1.0"),
    ],
)
def test_curves_are_checked(share: tuple[float, ...], watts: tuple[float, ...], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        PowerCurve(point="p", share_X=share, power_w_X=watts)


def test_model_knows_its_points() -> None:
    curve = physical_curve(point="15W", idle_w=2.0, busy_w=10.0, cubic_share=0.5, fit="test")
    model = PowerModel(idle_w=1.0, curves=(curve,), source="modelled", provenance="test")
    assert model.curve("15W") is curve
    with pytest.raises(UsageError, match=r"no power curve for operating point '30W'\. Known points: 15W"):
        model.curve("30W")
    with pytest.raises(ValueError, match="different names"):
        PowerModel(idle_w=1.0, curves=(curve, curve), source="modelled", provenance="test")
    with pytest.raises(ValueError, match="at least one curve"):
        PowerModel(idle_w=1.0, curves=(), source="modelled", provenance="test")


def test_a_curve_that_flattens_out_is_not_forced_into_the_physical_basis() -> None:
    share = [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    watts = [10.0, 30.0, 45.0, 47.0, 48.0, 48.5]
    curve = fit_power_curve(point="p", share=share, power_w=watts)
    assert curve.fit in ("isotonic", "gp")
    assert [curve.power_w(x) for x in share] == pytest.approx(watts, rel=0.1)
    assert list(curve.power_w_X) == sorted(curve.power_w_X)


def test_the_band_is_wide_where_nothing_was_measured() -> None:
    curve = fit_power_curve(point="p", share=[0.0, 0.1, 0.2, 0.3, 1.0], power_w=[2.0, 2.6, 2.9, 3.6, 8.0])
    near, far = curve.band_at_w(0.2), curve.band_at_w(0.65)
    assert near is not None
    assert far is not None
    assert far > 2 * near > 0
    assert not curve.extrapolated(0.65)


def test_a_middle_point_that_lies_right_by_chance_leaves_a_band() -> None:
    curve = fit_power_curve(point="p", share=[0.0, 0.5, 1.0], power_w=[2.0, 5.0, 8.0])
    assert curve.band_w == pytest.approx(0.0, abs=1e-6)
    assert (curve.band_at_w(0.25) or 0.0) > 0.1 * (8.0 - 2.0)


def test_more_points_on_the_curve_narrow_the_band() -> None:
    def band_w(count: int) -> float:
        share = np.linspace(0.0, 1.0, count)
        curve = fit_power_curve(point="p", share=[*share], power_w=[*(2.0 + 6.0 * share)])
        return curve.band_at_w(0.3) or 0.0

    assert band_w(3) > band_w(5) > band_w(9) > 0.0


def test_outside_the_measured_shares_it_says_so() -> None:
    curve = fit_power_curve(point="p", share=[0.1, 0.3, 0.6], power_w=[2.0, 3.0, 5.0])
    assert curve.measured_share == (0.1, 0.6)
    assert curve.extrapolated(0.9)
    assert curve.extrapolated(0.0)
    catalogue = physical_curve(point="p", idle_w=1.0, busy_w=2.0, cubic_share=0.5, fit="test")
    assert not catalogue.extrapolated(0.9)
    assert catalogue.band_at_w(0.5) is None


def test_power_that_falls_with_the_load_is_told() -> None:
    curve = fit_power_curve(point="p", share=[0.0, 0.5, 1.0], power_w=[9.0, 6.0, 3.0])
    assert curve.warnings[0].startswith("falling-power:")
    assert list(curve.power_w_X) == sorted(curve.power_w_X)
    assert fit_power_curve(point="p", share=[0.0, 0.5, 1.0], power_w=[3.0, 6.0, 9.0]).warnings == ()


@pytest.mark.parametrize(
    ("share", "watts"),
    [([0.0, 0.3, 0.6, 1.0], [2.0, 4.0, 6000.0, 8.0]), ([0.0, 0.3, 0.6, 1.0], [2.0, 4.0, 0.006, 8.0]),
     ([0.0, 0.5, 1.0], [2000.0, 6.0, 8.0])],
)  # fmt: skip
def test_milliwatts_among_watts_are_refused(share: list[float], watts: list[float]) -> None:
    with pytest.raises(UsageError, match="watts and milliwatts"):
        fit_power_curve(point="p", share=share, power_w=watts)


def test_milliwatts_throughout_are_told() -> None:
    curve = fit_power_curve(point="p", share=[0.0, 1.0], power_w=[2000.0, 8000.0])
    assert curve.warnings[0].startswith("power-unit:")


def test_deep_sleep_is_no_slip() -> None:
    curve = fit_power_curve(point="p", share=[0.0, 0.0, 1.0], power_w=[0.18, 0.18, 48.0])
    assert curve.warnings == ()
    assert curve.busy_w == pytest.approx(48.0, rel=0.02)


def test_curves_of_old_files_have_no_band_over_share() -> None:
    curve = PowerCurve(point="p", share_X=(0.0, 1.0), power_w_X=(1.0, 2.0), band_w=0.3)
    assert curve.band_at_w(0.5) == 0.3
    assert not curve.extrapolated(0.5)
    with pytest.raises(ValueError, match="as many watts as shares"):
        PowerCurve(point="p", share_X=(0.0, 1.0), power_w_X=(1.0, 2.0), band_w_X=(0.1,))
    with pytest.raises(ValueError, match="within"):
        PowerCurve(point="p", share_X=(0.0, 1.0), power_w_X=(1.0, 2.0), measured_share=(0.5, 1.5))
