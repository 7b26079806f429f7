"""What a run's plan is compared with later: the fastest plan, the best single device, the whole frontier."""

from __future__ import annotations

import contextlib
from pathlib import Path

import msgspec

from greentrain.cli._schedule_frontier import FRONTIER_SCHEMA, frontier_path, read_frontier
from greentrain.errors import InfeasibleError, UsageError
from greentrain.files import read_json, write_json
from greentrain.objective import Objective, Problem
from greentrain.plan import PLAN_SCHEMA, Plan, time_optimal_path

__all__ = ["write_beside"]


def write_beside(folder: Path, plan: Plan, problem: Problem, plan_path: Path) -> None:
    """Write them into the run's folder, each where it is known and belongs to the plan.

    Args:
        folder: The run's folder.
        plan: What will run.
        problem: Devices and model that it was made for.
        plan_path: Where the plan was read from; its time-optimal plan and its frontier lie beside it.

    Raises:
        UsageError: The time-optimal plan is damaged.
    """
    beside = time_optimal_path(plan_path)
    if beside.exists():
        fastest = read_json(beside, Plan, schema=PLAN_SCHEMA)
        # A plan file left over from another model or cluster would compare apples with pears.
        if (fastest.structure_sha256, fastest.cluster, fastest.batch) == (
            plan.structure_sha256, plan.cluster, plan.batch,
        ):  # fmt: skip
            write_json(folder / "time_optimal.plan.json", fastest, schema=PLAN_SCHEMA)
    single = _best_single(plan, problem)
    if single is not None:
        write_json(folder / "single.plan.json", single, schema=PLAN_SCHEMA)
    # A frontier that is missing or damaged is none of the run's business.
    with contextlib.suppress(UsageError):
        frontier = read_frontier(frontier_path(plan_path))
        if frontier.origin == plan.origin and frontier.rows[0].plan.batch == plan.batch:
            write_json(folder / "frontier.json", frontier, schema=FRONTIER_SCHEMA)


def _best_single(plan: Plan, problem: Problem) -> Plan | None:
    """The one device, of those that might have taken part, with the least energy; no other limit than memory."""
    from greentrain.planners.single import plan as plan_single

    able = set(plan.origin.devices if plan.origin is not None else plan.devices)
    cluster = msgspec.structs.replace(
        problem.cluster, devices=tuple(device for device in problem.cluster.devices if device.id in able)
    )
    wish = Objective(minimise="energy", count_idle_of_unused=plan.objective.count_idle_of_unused)
    sizes = tuple(size for size in range(1, plan.batch + 1) if plan.batch % size == 0)
    try:
        return plan_single(
            msgspec.structs.replace(problem, cluster=cluster, objective=wish, micro_batches=sizes, parallelism="any")
        )
    except (InfeasibleError, UsageError):
        return None
