"""The time-energy frontier as a table, as ``plan.frontier.json``, and picking a plan from it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from greentrain.cli._common import table_lines
from greentrain.cost import estimate
from greentrain.errors import InfeasibleError, UsageError
from greentrain.files import read_json
from greentrain.objective import Problem
from greentrain.plan import Origin, Plan, parallelism_name
from greentrain.planners.candidate import objective_value
from greentrain.units import format_quantity

__all__ = [
    "FRONTIER_SCHEMA",
    "FrontierFile",
    "best_number",
    "frontier_file",
    "frontier_path",
    "frontier_text",
    "number_of_pick",
    "priced_again",
    "read_frontier",
]

FRONTIER_SCHEMA = "greentrain.frontier/1"


class FrontierRow(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One plan of the frontier.

    Attributes:
        number: From 1, fastest first; the value of ``--pick``.
        step_s: Seconds of a round.
        samples_per_s: Throughput.
        energy_j_per_sample: Joules per sample.
        parallelism: The field's word for it.
        devices: Participants in pipeline order.
        points: Their operating points.
        marks: ``time``, ``energy``, ``EDP knee``: what it is the best of; ``chosen``: the objective's best.
        plan: The whole plan.
    """

    number: int
    step_s: float
    samples_per_s: float
    energy_j_per_sample: float
    parallelism: str
    devices: tuple[str, ...]
    points: tuple[str, ...]
    marks: tuple[str, ...]
    plan: Plan


class FrontierFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Every plan that no other beats in both time and energy: ``plan.frontier.json``.

    Attributes:
        model: Name of the workload.
        cluster: Name of the cluster.
        exact: Whether these are all of them.
        method: How they were found.
        rows: Fastest first.
        origin: What they were made from.
    """

    model: str
    cluster: str
    exact: bool
    method: str
    rows: tuple[FrontierRow, ...]
    origin: Origin


def frontier_path(plan: Path) -> Path:
    """Where the frontier lies beside a plan: ``plan.json`` → ``plan.frontier.json``."""
    return plan.with_name(f"{plan.stem}.frontier.json")


def frontier_file(
    plans: Sequence[Plan], chosen: int, *, exact: bool, method: str, origin: Origin
) -> FrontierFile:  # fmt: skip
    """The file of these plans.

    Args:
        plans: Fastest first.
        chosen: Number of the plan that the objective takes.
        exact: Whether these are all plans of the frontier.
        method: How they were found.
        origin: What they were made from.
    """
    prices = [_figures(plan) for plan in plans]
    knee = min(range(len(plans)), key=lambda index: prices[index][0] * prices[index][2])
    rows: list[FrontierRow] = []
    for index, plan in enumerate(plans):
        marks = {
            "time": index == 0, "energy": index == len(plans) - 1, "EDP knee": index == knee,
            "chosen": index + 1 == chosen,
        }  # fmt: skip
        step_s, samples_per_s, energy_j = prices[index]
        rows.append(
            FrontierRow(
                number=index + 1, step_s=step_s, samples_per_s=samples_per_s, energy_j_per_sample=energy_j,
                parallelism=parallelism_name(plan), devices=plan.devices,
                points=tuple(point for stage in plan.stages for point in stage.points),
                marks=tuple(mark for mark, holds in marks.items() if holds),
                plan=msgspec.structs.replace(plan, origin=origin, reasons={}),
            )
        )  # fmt: skip
    return FrontierFile(
        model=plans[0].model, cluster=plans[0].cluster, exact=exact, method=method, rows=tuple(rows), origin=origin
    )


def _figures(plan: Plan) -> tuple[float, float, float]:
    assert plan.estimate is not None
    return plan.estimate.step_s, plan.estimate.samples_per_s, plan.estimate.energy_j_per_sample


def frontier_text(file: FrontierFile) -> str:
    """The frontier as a table."""
    table = [("#", "s/round", "samples/s", "J/sample", "parallelism", "devices @ points", "")]
    table += [
        (
            str(row.number), f"{row.step_s:.4g}", f"{row.samples_per_s:.4g}", f"{row.energy_j_per_sample:.4g}",
            row.parallelism,
            ", ".join(f"{device} @ {point}" for device, point in zip(row.devices, row.points, strict=True)),
            f"< {', '.join(row.marks)}" if row.marks else "",
        )
        for row in file.rows
    ]  # fmt: skip
    whole = "all plans that no other beats in both" if file.exact else "not all of them"
    return "\n".join([f"Time-energy frontier of {file.model}: {whole} ({file.method})", *table_lines(table)])


def read_frontier(path: Path) -> FrontierFile:
    """Read ``plan.frontier.json``.

    Raises:
        UsageError: Missing or damaged.
    """
    try:
        return read_json(path, FrontierFile, schema=FRONTIER_SCHEMA)
    except UsageError as error:
        if not path.exists():
            error.hint = "Make it with: greentrain schedule --frontier"
        raise


def number_of_pick(pick: str, rows_n: int) -> int | None:
    """The number that ``--pick`` names; None for ``best``.

    Raises:
        UsageError: It is neither, or there is no such row.
    """
    if pick == "best":
        return None
    if not (pick.isdigit() and 1 <= int(pick) <= rows_n):
        raise UsageError(f"--pick is {pick!r}, expected best or a number from 1 to {rows_n}.")
    return int(pick)


def priced_again(file: FrontierFile, problem: Problem) -> list[Plan]:
    """The plans of a file under the present limits and objective.

    Raises:
        UsageError: A device is not in the cluster any more.
    """
    plans = [msgspec.structs.replace(row.plan, objective=problem.objective) for row in file.rows]
    return [msgspec.structs.replace(plan, estimate=estimate(plan, problem)) for plan in plans]


def best_number(plans: Sequence[Plan], problem: Problem) -> int:
    """Number of the plan that the objective takes within the limits.

    Raises:
        InfeasibleError: None keeps them.
    """
    slowdown = problem.objective.max_slowdown
    longest_s = float("inf") if slowdown is None else slowdown * min(_figures(plan)[0] for plan in plans) * (1 + 1e-12)
    kept = [
        (objective_value(plan), index)
        for index, plan in enumerate(plans)
        if plan.estimate is not None and not plan.estimate.violations and plan.estimate.step_s <= longest_s
    ]
    if not kept:
        fastest = plans[0].estimate
        assert fastest is not None
        raise InfeasibleError(
            f"no plan of the frontier keeps the limits; the fastest: {fastest.violations[0]}.",
            hint=f"Its round takes {format_quantity(fastest.step_s, 'time')}; relax the limit, or schedule again.",
        )
    return min(kept)[1] + 1
