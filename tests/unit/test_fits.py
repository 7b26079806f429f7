from __future__ import annotations

import numpy as np
import pytest

from greentrain.choice import Data, choose
from greentrain.fits import NOISE, Task, monotone_mean, physical_mean, with_residuals, wrong_way_noise
from greentrain.transfer import align_sweep, foreignness, likeness, transfer_fit

X = np.log(np.linspace(0.1, 1.0, 10))[:, None]
SHARE = np.exp(X[:, 0])
CLOCK_TIME, CLOCK_POWER = Task("time", (False,)), Task("power", (False,))
CAP_TIME, CAP_POWER = Task("time", (True,)), Task("power", (True,))


@pytest.mark.parametrize(
    ("task", "values"),
    [
        (CLOCK_TIME, 0.3 + 1 / SHARE),
        (CLOCK_TIME, np.maximum(4.0, 1 / SHARE)),
        (CLOCK_POWER, 2 + 3 * SHARE + 9 * SHARE**3),
        (CLOCK_POWER, 2 + 6 * SHARE * np.maximum(SHARE / 0.7, 1.0) ** 2),
        (CAP_POWER, np.minimum(SHARE, 0.55) * 300),
        (CAP_TIME, np.maximum(0.55 / SHARE, 1.0) ** 1.5),
    ],
)
def test_the_physical_mean_follows_physics(task: Task, values: np.ndarray) -> None:
    z_N = np.log(values)
    seen = [0, 2, 4, 6, 9]
    mean = physical_mean(task, X[seen], z_N[seen], X)
    assert np.abs(mean.log_Q - z_N).max() < 0.12
    # Power rises with the setting and time falls, whatever was measured.
    way = np.diff(mean.log_Q) * (1 if task.quantity == "power" else -1)
    assert (way > -1e-9).all()


def test_one_point_leaves_the_slope_open() -> None:
    mean = physical_mean(CLOCK_TIME, X[-1:], np.zeros(1), X)
    sd_Q = np.sqrt(np.diag(mean.cov_QQ))
    assert sd_Q[-1] < 0.01
    assert sd_Q[0] > 0.5


def test_monotone_never_turns_and_holds_its_end_slopes() -> None:
    z_N = np.asarray([0.0, 0.5, 0.4, 1.0])
    mean = monotone_mean(CLOCK_POWER, X[[1, 3, 5, 8]], z_N, X)
    assert (np.diff(mean.log_Q) >= -1e-12).all()
    assert mean.log_Q[0] < 0.0
    assert mean.log_Q[9] > 1.0
    assert mean.log_N[1] == mean.log_N[2] == pytest.approx(0.45)


def test_residuals_are_followed_near_and_forgotten_far() -> None:
    z_N = np.asarray([0.0, 0.2])
    mean = physical_mean(CLOCK_TIME, X[[8, 9]], np.zeros(2), X)
    fit = with_residuals(mean, X[[8, 9]], z_N, X, amplitude=0.1, noise_N=np.full(2, 0.01))
    assert fit.log_Q[9] > fit.log_Q[8]
    sd_Q = np.sqrt(np.diag(fit.cov_QQ))
    assert sd_Q[0] > 3 * sd_Q[9]


def test_what_goes_the_wrong_way_is_noise() -> None:
    random = np.random.default_rng(0)
    assert wrong_way_noise(CLOCK_TIME, X, -2 * X[:, 0]) == NOISE
    seen = [wrong_way_noise(CLOCK_TIME, X, random.normal(0, 0.1, 10)) for _ in range(40)]
    assert 0.06 < float(np.median(seen)) < 0.13
    assert wrong_way_noise(CLOCK_TIME, X[:1], np.zeros(1)) == NOISE


def test_sweeps_are_read_where_they_reach() -> None:
    dense = np.log(np.linspace(1e8, 1e9, 19))[:, None]
    values = -dense[:, 0]
    same = align_sweep(dense[::3], dense, values)
    assert same is not None
    assert not same.scaled
    assert same.log_A == pytest.approx(values[::3])
    between = align_sweep(dense[:-1] + 0.02, dense, values)
    assert between is not None
    assert between.log_A == pytest.approx(values[:-1] - 0.02, abs=0.01)
    other = align_sweep(dense - 3.0, dense, values)
    assert other is not None
    assert other.scaled
    assert other.log_A == pytest.approx(values, abs=0.01)
    assert align_sweep(dense, dense[:2], values[:2]) is None
    assert align_sweep(dense, dense[:8], values[:8]) is None


def test_the_family_tells_the_shape_and_the_probe_the_level() -> None:
    family = np.stack([3.0 * bend + np.log(bend + 1 / SHARE) for bend in (0.1, 0.5, 1.0, 2.0, 4.0)])
    truth = 7.0 + np.log(1.5 + 1 / SHARE)
    order = [0, 9, *range(1, 9)]
    prior, asked = family[:, order], X[order]
    weight = likeness(prior, truth[order][:2], level_counts=False)
    fit = transfer_fit(prior, weight, truth[order][:2], asked, np.full(2, 0.01))
    assert fit.log_Q == pytest.approx(truth[order][2:], abs=0.05)
    assert weight.argmax() in (2, 3)


def test_foreign_is_what_is_farther_than_the_family_is_wide() -> None:
    family = np.stack([np.log(bend + 1 / SHARE) for bend in (0.5, 0.6, 0.7, 0.8)])
    assert foreignness(family, np.log(0.65 + 1 / SHARE), level_counts=False) == 1.0
    assert foreignness(family, np.zeros(10), level_counts=False) > 5


def test_the_band_of_many_replays_holds_what_it_says() -> None:
    random = np.random.default_rng(2)
    shapes = np.log(random.uniform(0.1, 3.0, 80)[:, None] + 1 / SHARE) + random.normal(0, 0.02, (80, 10))
    order = [9, 0, 4, 1, 2, 3, 5, 6, 7, 8]
    inside: list[np.ndarray] = []
    for index in range(40, 80):
        data = Data(
            task=CLOCK_TIME, x_NF=X[order][:3], z_N=shapes[index][order][:3], noise_N=np.zeros(3),
            count_N=np.ones(3), repeat_noise=NOISE, x_QF=X[order][3:], prior_JA=shapes[:40, order], level_counts=False,
        )  # fmt: skip
        chosen = choose(data)
        inside.append(np.abs(chosen.log_Q - shapes[index][order][3:]) <= chosen.half_Q)
    assert 0.9 <= np.concatenate(inside).mean() <= 1.0


def test_unchecked_replays_narrow_the_band_less() -> None:
    """Two observed points leave none to check the replays with; a third one does."""
    shapes = np.log(np.linspace(0.1, 3.0, 20)[:, None] + 1 / SHARE)
    order = [9, 0, 4, 1, 2, 3, 5, 6, 7, 8]

    def width(seen: int) -> float:
        data = Data(
            task=CLOCK_TIME, x_NF=X[order][:seen], z_N=shapes[10][order][:seen], noise_N=np.zeros(seen),
            count_N=np.ones(seen), repeat_noise=NOISE, x_QF=X[order][3:], prior_JA=np.delete(shapes, 10, axis=0)[
                :, [*order[:seen], *order[3:]]], level_counts=False,
        )  # fmt: skip
        chosen = choose(data)
        # Band and covariance are widened by one factor; what the band has beyond it is the noise of a new measurement.
        noise_Q = np.sqrt((chosen.half_Q / 1.96) ** 2 - np.diag(chosen.cov_QQ))
        return float(np.median(noise_Q)) / NOISE

    assert 0.2 < width(3) < 0.85 * width(2)
    assert width(2) < 1.0
