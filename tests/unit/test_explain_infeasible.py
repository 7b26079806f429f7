"""What a refusal names: the limit that binds, and a relaxation that does make a plan possible."""

from __future__ import annotations

import re

import msgspec
import pytest
from problems import make_problem

from greentrain.errors import InfeasibleError
from greentrain.explain.infeasible import why_infeasible
from greentrain.objective import Problem
from greentrain.planners import exact
from greentrain.units import parse_quantity


def _problem(seed: int = 3, **objective: object) -> Problem:
    problem = make_problem(seed, devices=2, layers=3, points=2, batch=8, micro_batches=(4, 8))
    return msgspec.structs.replace(problem, objective=msgspec.structs.replace(problem.objective, **objective))


def _refused(problem: Problem) -> InfeasibleError:
    with pytest.raises(InfeasibleError) as refused:
        exact.plan(problem)
    return why_infeasible(problem, exact.plan, refused.value)


def _hinted(error: InfeasibleError, pattern: str) -> str:
    assert error.hint is not None
    found = re.search(pattern, error.hint)
    assert found is not None, error.hint
    return found.group(1)


def _relaxed(problem: Problem, **objective: object) -> Problem:
    return msgspec.structs.replace(problem, objective=msgspec.structs.replace(problem.objective, **objective))


def test_a_deadline() -> None:
    problem = _problem(deadline_s=1.0, job_samples=80_000)
    error = _refused(problem)
    assert re.search(r"the deadline is missed by [\d.]+ \w+, the fastest plan needs [\d.]+ \w+", error.message)
    deadline_s = parse_quantity(_hinted(error, r"Allow ([\d.]+ \w+)"), "time", where="hint")
    assert exact.plan(_relaxed(problem, deadline_s=deadline_s)).estimate is not None
    with pytest.raises(InfeasibleError):
        exact.plan(_relaxed(problem, deadline_s=deadline_s * 0.998))


def test_an_energy_budget() -> None:
    problem = _problem(budget_j=1.0, job_samples=80_000)
    error = _refused(problem)
    assert re.search(r"the energy budget is exceeded by [\d.]+ Wh \(100% too small\), the leanest plan", error.message)
    budget_j = parse_quantity(_hinted(error, r"Allow ([\d.]+ Wh)"), "energy", where="hint")
    assert exact.plan(_relaxed(problem, budget_j=budget_j)).estimate is not None
    with pytest.raises(InfeasibleError):
        exact.plan(_relaxed(problem, budget_j=budget_j * 0.998))


def test_an_energy_budget_of_every_device() -> None:
    problem = _problem(device_budget_j={"d0": 1e9, "d1": 1e-3}, job_samples=80_000)
    only = msgspec.structs.replace(problem, cluster=problem.cluster.restricted_to(("d1",)))
    error = _refused(only)
    assert "the energy budget of 2.778e-07 Wh on d1 is too small, the leanest plan takes" in error.message
    budget_j = parse_quantity(_hinted(error, r"Allow d1 ([\d.]+ Wh)"), "energy", where="hint")
    assert exact.plan(_relaxed(only, device_budget_j={"d1": budget_j})).estimate is not None


def test_a_power_cap() -> None:
    problem = _problem()
    only = msgspec.structs.replace(problem, cluster=problem.cluster.restricted_to(("d1",)))
    device = only.cluster.devices[0]
    least_w = min(device.curve(point.name).busy_w for point in device.points)
    capped = _relaxed(only, power_cap_w={"d1": 0.5 * least_w})
    error = _refused(capped)
    assert "on d1 leaves out an operating point that is needed" in error.message
    cap_w = parse_quantity(_hinted(error, r"Allow d1 ([\d.]+ W)"), "power", where="hint")
    assert least_w <= cap_w <= least_w * 1.002
    assert exact.plan(_relaxed(capped, power_cap_w={"d1": cap_w})).estimate is not None


def test_memory_that_a_smaller_micro_batch_fits() -> None:
    problem = _problem()
    room = exact.plan(msgspec.structs.replace(problem, micro_batches=(2,))).estimate
    assert room is not None
    members = tuple(
        msgspec.structs.replace(device, memory_bytes=max(room.peak_bytes.values()))
        for device in problem.cluster.devices
    )
    tight = msgspec.structs.replace(
        problem, cluster=msgspec.structs.replace(problem.cluster, devices=members[:1], links=())
    )
    error = _refused(tight)
    assert re.search(r"device d0 lacks [\d.]+ \w+ of memory", error.message)
    assert _hinted(error, r"With --micro-batch (\d+) it fits") == "2"


def test_memory_that_nothing_fits() -> None:
    problem = _problem()
    members = tuple(msgspec.structs.replace(device, memory_bytes=10) for device in problem.cluster.devices)
    tight = msgspec.structs.replace(problem, cluster=msgspec.structs.replace(problem.cluster, devices=members))
    error = _refused(tight)
    assert error.hint == "Add a device with more memory; no smaller batch helps."


def test_several_limits_that_each_would_do() -> None:
    # The fastest plan takes more joules than allowed, the leanest more seconds.
    free = _problem(job_samples=8)
    fastest, leanest = exact.plan(_relaxed(free, minimise="time")).estimate, exact.plan(free).estimate
    assert fastest is not None
    assert leanest is not None
    assert fastest.step_s < leanest.step_s
    error = _refused(_relaxed(free, deadline_s=fastest.step_s * 1.0001, budget_j=leanest.round_energy_j * 1.0001))
    assert "the deadline is missed by" in error.message
    assert error.hint is not None
    assert re.fullmatch(r"Allow [\d.]+ ms; or allow [\d.e-]+ Wh\.", error.hint)


def test_limits_that_only_help_together() -> None:
    error = _refused(_problem(deadline_s=1e-6, budget_j=1e-6, job_samples=80_000))
    assert error.message.startswith("no plan keeps every limit, not even when one of them is dropped: ")
    assert error.hint == "Relax several of them: the deadline of 1 us, the energy budget of 1 uJ, the devices' memory."
