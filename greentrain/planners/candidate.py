"""What the planners share: assembling, pricing and comparing candidate plans."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import msgspec

from greentrain.cost import CostTables, estimate
from greentrain.errors import InfeasibleError
from greentrain.objective import Problem
from greentrain.plan import Certificate, Estimate, Plan, Sharing, Stage, in_flight_limit, stage_bytes

__all__ = ["Part", "assemble", "best_of", "certified", "lower_bound", "objective_value"]


class Part(NamedTuple):
    """A stage before its bytes are filled in."""

    start: int
    stop: int
    devices: tuple[str, ...]
    shares: tuple[int, ...]
    points: tuple[str, ...]
    sharing: Sharing = "samples"


def assemble(problem: Problem, planner: str, micro_batch: int, parts: Sequence[Part], tables: CostTables) -> Plan:
    """Make a priced plan of stages."""
    layers = problem.model.layers
    stages: list[Stage] = []
    for index, part in enumerate(parts):
        after = parts[index + 1].sharing if index + 1 < len(parts) else None
        stages.append(
            Stage(
                start=part.start,
                stop=part.stop,
                devices=part.devices,
                sharing=part.sharing,
                shares=part.shares,
                points=part.points,
                in_flight=in_flight_limit(len(parts), index, problem.batch // micro_batch),
                **stage_bytes(layers, part.start, part.stop, part.sharing, after)._asdict(),
            )
        )
    plan = Plan(
        model=problem.model.model,
        structure_sha256=problem.model.structure_sha256,
        cluster=problem.cluster.name,
        planner=planner,
        objective=problem.objective,
        batch=problem.batch,
        micro_batch=micro_batch,
        optimizer=problem.optimizer,
        stages=tuple(stages),
        recompute=problem.recompute,
    )
    return msgspec.structs.replace(plan, estimate=estimate(plan, problem, tables=tables))


def objective_value(plan: Plan) -> float:
    """The figure that the plan's objective minimises."""
    price = plan.estimate
    assert price is not None
    return plan.objective.value(energy_j_per_sample=price.energy_j_per_sample, s_per_sample=1.0 / price.samples_per_s)


def best_of(plans: Iterable[Plan], problem: Problem, planner: str) -> Plan:
    """The feasible plan with the least objective, certified against a simple lower bound.

    A slowdown is limited against the fastest of the candidates.

    Raises:
        InfeasibleError: None is feasible; the message gives the nearest plan's violation.
    """
    priced = [(plan, plan.estimate) for plan in plans if plan.estimate is not None]
    feasible = [(plan, price) for plan, price in priced if not price.violations]
    if not feasible:
        violation = "no micro-batch size has a row for every device"
        if priced:
            violation = min((price for _, price in priced), key=lambda price: _shortfall(price, problem)).violations[0]
        raise InfeasibleError(
            f"planner {planner!r} finds no feasible plan: {violation}.",
            hint="Relax that limit, add memory or devices, or try --planner auto.",
        )
    slowdown = problem.objective.max_slowdown
    if slowdown is not None:
        limit_s = slowdown * min(price.step_s for _, price in feasible)
        feasible = [(plan, price) for plan, price in feasible if price.step_s <= limit_s]
    best = min((plan for plan, _ in feasible), key=objective_value)
    method = f"best of {len(priced)} candidates; bound: every layer on its cheapest device, without waiting"
    return certified(best, problem, lower_bound(problem), method, len(priced))


def _shortfall(price: Estimate, problem: Problem) -> tuple[float, float, float]:
    """How far a plan is from feasible: bytes lacking, seconds late, joules per sample."""
    lacking = sum(max(used - problem.cluster.device(name).memory_bytes, 0) for name, used in price.peak_bytes.items())
    objective = problem.objective
    late_s = 0.0
    if objective.deadline_s is not None and objective.job_samples is not None:
        late_s = max(price.step_s * objective.job_samples / problem.batch - objective.deadline_s, 0.0)
    return lacking, late_s, price.energy_j_per_sample


def certified(plan: Plan, problem: Problem, bound: float, method: str, considered_n: int) -> Plan:
    """The plan with its certificate."""
    value = objective_value(plan)
    certificate = Certificate(
        lower_bound=bound,
        gap_ratio=max(value - bound, 0.0) / bound if bound > 0 else None,
        method=method,
        unit=problem.objective.unit,
        considered_n=considered_n,
    )
    return msgspec.structs.replace(plan, certificate=certificate)


def lower_bound(problem: Problem) -> float:
    """A figure that no plan can beat under the cost model.

    Energy: every layer runs where and in the micro-batch size in which it costs least, and nobody
    waits. Time: with weights y_d ∝ the device's speed, ``T ≥ Σ_l min_d y_d·t_dl`` (duality of the
    fluid relaxation); both ignore transfers, sums and updates.
    """
    rows = sorted({count for size in problem.micro_batches for count in range(1, size + 1)})
    best_time_s_DL: list[list[float]] = []
    best_energy_j_L = [float("inf")] * len(problem.model.layers)
    tables = CostTables(problem)
    for device in problem.cluster.devices:
        best_time_s_L = [float("inf")] * len(problem.model.layers)
        for point in device.points:
            busy_w = device.curve(point.name).busy_w
            for layer in range(len(best_time_s_L)):
                per_row_s = min(sum(tables.compute_s(device, point.name, layer, layer + 1, n)) / n for n in rows)
                best_time_s_L[layer] = min(best_time_s_L[layer], per_row_s)
                best_energy_j_L[layer] = min(best_energy_j_L[layer], per_row_s * busy_w)
        best_time_s_DL.append(best_time_s_L)
    totals_s = [max(sum(row), 1e-12) for row in best_time_s_DL]
    speed = sum(1 / total for total in totals_s)
    weights = [1 / total / speed for total in totals_s]
    time_s = sum(
        min(weight * row[layer] for weight, row in zip(weights, best_time_s_DL, strict=True))
        for layer in range(len(problem.model.layers))
    )
    return problem.objective.value(energy_j_per_sample=sum(best_energy_j_L), s_per_sample=time_s)
