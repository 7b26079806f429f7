"""The beam where no single device will do, and where somebody interrupts it."""

from __future__ import annotations

import msgspec
import pytest
from problems import make_problem

from greentrain.objective import Objective, Problem
from greentrain.parallel.memory import PROCESS_BYTES
from greentrain.planners import beam, exact
from greentrain.planners.candidate import objective_value


def _problem(**objective: object) -> Problem:
    problem = make_problem(2, devices=3, layers=4, batch=8)
    return msgspec.structs.replace(problem, objective=msgspec.structs.replace(problem.objective, **objective))


def test_a_model_that_fits_no_single_device() -> None:
    free = _problem()
    smallest = msgspec.structs.replace(free, parallelism="single", micro_batches=free.micro_batches[:1])
    alone = min(exact.plan(smallest).estimate.peak_bytes.values())  # type: ignore[union-attr]
    room = PROCESS_BYTES + int(0.7 * (alone - PROCESS_BYTES))
    members = tuple(msgspec.structs.replace(device, memory_bytes=room) for device in free.cluster.devices)
    tight = msgspec.structs.replace(free, cluster=msgspec.structs.replace(free.cluster, devices=members))
    found = beam.plan(tight)
    assert len(found.devices) > 1
    assert objective_value(found) == pytest.approx(objective_value(exact.plan(tight)), rel=0.05)


def test_a_deadline_that_no_single_device_keeps() -> None:
    fastest = exact.plan(_problem(minimise="time")).estimate
    assert fastest is not None
    found = beam.plan(_problem(deadline_s=fastest.step_s * 1.01, job_samples=8))
    assert len(found.devices) > 1
    assert found.estimate is not None
    assert found.estimate.step_s <= fastest.step_s * 1.01


def test_an_interrupted_beam_returns_its_best_plan_with_a_bound() -> None:
    problem = _problem(minimise="edp")
    calls = 0

    def report(_: str) -> None:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise KeyboardInterrupt

    best = objective_value(exact.plan(problem))
    found = beam.plan(problem, progress=report)
    assert objective_value(found) >= best * (1 - 1e-9)
    assert found.certificate is not None
    assert found.certificate.lower_bound is not None
    assert found.certificate.lower_bound <= best * (1 + 1e-9)


def test_a_beam_that_is_interrupted_at_once_has_nothing_to_return() -> None:
    def report(_: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        beam.plan(_problem(), progress=report)


def test_a_slowdown_is_measured_against_the_beams_fastest_plan() -> None:
    problem = make_problem(3, devices=3, layers=4, batch=8, objective=Objective(max_slowdown=1.05))
    free = msgspec.structs.replace(problem, objective=Objective(minimise="time"))
    fastest, found = beam.plan(free).estimate, beam.plan(problem)
    assert fastest is not None
    assert found.estimate is not None
    assert found.estimate.step_s <= 1.05 * fastest.step_s * (1 + 1e-9)
    assert found.objective == problem.objective
