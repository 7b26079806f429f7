from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from problems import make_problem

from greentrain.batch_fits import fit_batch
from greentrain.errors import UsageError
from greentrain.profile import ModelProfile, interpolate_batch_s
from greentrain.profile_files import model_names, read_model_profile, write_layer_times, write_model_profile

MODEL = make_problem(1, devices=2, points=2).model


@pytest.mark.parametrize(
    ("sizes", "times", "batch", "seconds"),
    [
        ((1, 4), (1.0, 4.0), 0, 0.0),
        ((1, 4), (1.0, 4.0), 2, 2.0),
        ((1, 4), (1.0, 4.0), 4, 4.0),
        ((1, 4), (1.0, 4.0), 8, 8.0),  # the end slope is held
        ((2,), (3.0,), 4, 6.0),  # one size: proportional
        ((1, 4), (0.5, 0.3), 2, 0.5 - 0.2 / 3),
        ((1, 4), (0.5, 0.3), 4, 0.3),
        ((1, 4), (0.5, 0.3), 9, 0.3),  # noise that falls is not drawn out, and does not jump back
        ((4, 8), (0.3, 0.1), 2, 0.3),
        ((4, 8), (1.0, 3.0), 1, 0.25),  # never below the time per row of the smallest size
    ],
)
def test_interpolation(sizes: tuple[int, ...], times: tuple[float, ...], batch: int, seconds: float) -> None:
    assert interpolate_batch_s(sizes, times, batch) == pytest.approx(seconds)


@given(
    times=st.lists(st.floats(1e-4, 10), min_size=1, max_size=4),
    gaps=st.lists(st.integers(1, 20), min_size=4, max_size=4),
    batch=st.integers(1, 200),
)
def test_interpolation_is_positive_exact_at_the_knots_and_continuous(
    times: list[float], gaps: list[int], batch: int
) -> None:
    sizes = tuple(sum(gaps[: index + 1]) for index in range(len(times)))
    for size, seconds in zip(sizes, times, strict=True):
        assert interpolate_batch_s(sizes, tuple(times), size) == pytest.approx(seconds)
    here, after = (interpolate_batch_s(sizes, tuple(times), rows) for rows in (batch, batch + 1))
    assert here > 0
    steepest = max([times[0] / sizes[0], *(abs(b - a) for a, b in pairwise(times))])
    assert abs(after - here) <= steepest * (1 + 1e-9)


def test_a_launch_cost_and_a_cost_per_sample_are_found() -> None:
    fit = fit_batch((1, 2, 4, 8, 16), tuple(0.01 + 0.002 * batch for batch in (1, 2, 4, 8, 16)))
    assert fit.name == "affine"
    assert fit.value(12) == pytest.approx(0.034)
    assert fit.loo_ratio == pytest.approx(0, abs=1e-6)
    assert fit.band_ratio == pytest.approx(0, abs=1e-6)
    assert not fit.extrapolated(12)
    assert fit.extrapolated(17)


def test_steps_keep_their_shape_and_noise_its_band() -> None:
    steps = fit_batch((1, 2, 4, 8, 16), (1.0, 1.0, 1.0, 4.0, 4.1))
    assert steps.name in ("monotone", "piecewise")
    noisy = fit_batch((1, 2, 4, 8, 16), (0.013, 0.013, 0.019, 0.025, 0.044))
    assert noisy.band_ratio is not None
    assert 0.01 < noisy.band_ratio < 0.5
    assert fit_batch((1, 8), (1.0, 2.0)).loo_ratio is None
    assert fit_batch((4,), (2.0,)).value(8) == pytest.approx(4.0)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.0, -1.0])
def test_a_fit_over_batches_refuses(value: float) -> None:
    with pytest.raises(UsageError, match="expected finite numbers above 0"):
        fit_batch((1, 2), (1.0, value))
    with pytest.raises(ValueError, match="must rise"):
        fit_batch((2, 1), (1.0, 2.0))


def test_layer_times_know_their_range_and_their_error() -> None:
    times = MODEL.times[0]
    assert times.extrapolated(times.batch_B[-1] + 1)
    assert not times.extrapolated(times.batch_B[0])
    fit = times.fit()
    assert fit.batch_B == times.batch_B
    assert fit.loo_ratio is not None
    assert fit.value(times.batch_B[-1]) == pytest.approx(
        sum(row[-1] for row in (*times.forward_s_LB, *times.backward_s_LB)), rel=0.2
    )


def test_times_of_a_kind_and_point() -> None:
    assert MODEL.times_of("kind1", "p1").kind == "kind1"
    with pytest.raises(UsageError, match=r"no layer times for device kind 'x' at operating point 'p0'\. Run:"):
        MODEL.times_of("x", "p0")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"batch_B": (4, 2, 1)}, "batch_B must rise"),
        ({"batch_B": (0, 2, 4)}, "batch_B must rise from at least 1"),
        ({"batch_B": (2, 4)}, "one time per batch size"),
        ({"update_s_L": (0.1,)}, "cover the same layers"),
        ({"update_s_L": (-0.1,) * 4}, "update_s is -0.1"),
        ({"forward_s_LB": ((float("nan"),) * 3,) * 4}, "time_s is nan"),
        ({"forward_s_LB": ((0.0,) * 3,) * 4, "backward_s_LB": ((0.0,) * 3,) * 4}, "every time of kind 'kind0'"),
    ],
)
def test_times_are_checked(changes: dict[str, object], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        msgspec.structs.replace(MODEL.times[0], **changes)


def test_models_are_checked() -> None:
    with pytest.raises(ValueError, match="two sets of layer times for kind 'kind0' at point 'p0'"):
        MODEL.with_times((MODEL.times[0], MODEL.times[0]))
    with pytest.raises(ValueError, match="cover 4 layers, the model has 3"):
        msgspec.structs.replace(MODEL, layers=MODEL.layers[:3])
    with pytest.raises(ValueError, match="at least one layer"):
        ModelProfile(model="m", structure_sha256="0", layers=(), input_bytes=1)
    with pytest.raises(ValueError, match="param_bytes is -1"):
        msgspec.structs.replace(MODEL.layers[0], param_bytes=-1)


def test_profiles_lie_in_one_folder(tmp_path: Path) -> None:
    assert model_names(tmp_path) == ()
    with pytest.raises(UsageError, match=r"toy\.model\.json: no such file; models profiled in .*: none"):
        read_model_profile(tmp_path, "toy")
    write_model_profile(tmp_path, MODEL)
    for times in MODEL.times:
        write_layer_times(tmp_path, times)
    other = msgspec.structs.replace(MODEL.times[0], model="other")
    assert write_layer_times(tmp_path, other).name == "kind0.p0.other.layers.json"
    assert model_names(tmp_path) == ("toy",)
    assert read_model_profile(tmp_path, "toy") == MODEL
    (tmp_path / "copy.layers.json").write_bytes((tmp_path / "kind0.p0.toy.layers.json").read_bytes())
    with pytest.raises(UsageError, match=r"two sets of layer times for kind 'kind0'.* Run: greentrain measure"):
        read_model_profile(tmp_path, "toy")
