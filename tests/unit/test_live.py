"""What a run costs while it goes on."""

from __future__ import annotations

import pytest

from greentrain.runtime.live import LiveView, usual_round
from greentrain.runtime.messages import Digest


def digest(step: int, *, energy_j: float | None = 2.0, busy_s: float = 0.25) -> Digest:
    return Digest(
        step=step, t_start_s=0.5 * step, duration_s=0.5, energy_j=energy_j, error_j=None, cpu_s=0.1, busy_s=busy_s
    )


def test_rounds_are_added_once() -> None:
    view = LiveView(batch=4)
    rounds: dict[int, Digest] = {}
    for step in range(3):
        rounds[step] = digest(step)
        view.take({"a": rounds})
        view.take({"a": rounds})
    live = view.devices()["a"]
    assert live.power_w == pytest.approx(4.0)
    assert live.energy_j == pytest.approx(6.0)
    assert live.joules_per_sample == pytest.approx(0.5)


def test_a_silent_meter_is_not_zero() -> None:
    view = LiveView(batch=4)
    view.take({"a": {0: digest(0, energy_j=None)}})
    live = view.devices()["a"]
    assert (live.power_w, live.energy_j, live.joules_per_sample) == (None, None, None)


def test_a_usual_round_is_the_median_of_rounds_that_all_know() -> None:
    digests = {
        "a": {step: digest(step, energy_j=float(step), busy_s=0.1 * step) for step in range(1, 6)},
        "b": {step: digest(step, energy_j=None if step == 2 else 1.0) for step in range(1, 6)},
    }
    seen = usual_round(digests, ("a", "b"), range(1, 6))
    assert seen is not None
    assert seen.step_s == 0.5
    assert seen.busy_s == {"a": pytest.approx(0.3), "b": 0.25}
    assert seen.energy_j == {"a": 3.0}
    assert usual_round(digests, ("a", "b"), range(1, 7)) is None
