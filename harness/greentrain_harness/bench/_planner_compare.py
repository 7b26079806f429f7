"""All planners on the same problems under the same cost: who wins, and by how much."""

from __future__ import annotations

import functools
import inspect
import signal
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Literal, NamedTuple

import msgspec

from greentrain.cluster import Cluster
from greentrain.cost import estimate
from greentrain.errors import InfeasibleError, NotSupportedError
from greentrain.objective import Objective, Problem
from greentrain.plan import Plan, parallelism_name, validate
from greentrain.planners import PLANNERS, Planner, load_planner
from greentrain_harness.bench._planner_cases import make_problem
from greentrain_harness.bench._planner_errors import error_row
from greentrain_harness.bench._planner_profiles import LayerChain

__all__ = [
    "SEARCHING",
    "Outcome",
    "PlannerRow",
    "compare_pair",
    "compare_table",
    "flaws",
    "run_planner",
    "savings_table",
]

Goal = Literal["energy", "energy-idle", "time"]

GOALS: dict[Goal, Objective] = {
    "energy": Objective(minimise="energy"),
    "energy-idle": Objective(minimise="energy", count_idle_of_unused=True),
    "time": Objective(minimise="time"),
}

# Planners that search the whole space: no other may find a better plan, and no plan lies below their bound.
SEARCHING = ("auto",)
# What ``auto`` takes is not run a second time by its own name.
_INSIDE_AUTO = ("exact", "beam")
_ROUNDING = 1e-9
# Part of a time limit after which a search ends by itself; searches end by themselves within a long one.
_PART_TO_SEARCH = 0.8
_LONG_S = 40.0


class _OutOfTimeError(Exception):
    """The planner took longer than it was given."""


class Outcome(NamedTuple):
    """What a planner came up with.

    Attributes:
        plan: Its plan, priced by the common cost; None when it found none.
        reason: Why there is none.
        plan_s: Seconds of planning.
        cpu_s: Processor seconds of planning.
    """

    plan: Plan | None
    reason: str
    plan_s: float
    cpu_s: float


class PlannerRow(msgspec.Struct, frozen=True, kw_only=True):
    """A planner on a pair for a goal; figures are None where it found no plan.

    Attributes:
        model: Name of the profile.
        cluster: Name of the cluster.
        goal: What was minimised; ``energy-idle`` also counts the idle energy of the boards that take no part.
        planner: Its name.
        reason: Why it has no plan; empty otherwise.
        plan_s: Seconds of planning.
        value: The figure that was minimised, under the common cost.
        energy_j_per_sample: Joules per sample.
        samples_per_s: Samples per second.
        lower_bound: The certificate's bound on the value.
        gap_ratio: The certificate's gap.
        parallelism: What kind of plan it is.
        devices_n: Participants.
        micro_batch: Rows of a micro-batch.
        error_ratio: Formula over simulator for this plan's round, less one.
    """

    model: str
    cluster: str
    goal: Goal
    planner: str
    reason: str
    plan_s: float
    value: float | None = None
    energy_j_per_sample: float | None = None
    samples_per_s: float | None = None
    lower_bound: float | None = None
    gap_ratio: float | None = None
    parallelism: str = ""
    devices_n: int | None = None
    micro_batch: int | None = None
    error_ratio: float | None = None


def run_planner(name: str, problem: Problem, *, limit_s: float) -> Outcome:
    """Plan within a time limit and price the plan again by the common cost.

    A searching planner is told of most of a short limit, so that it returns what it has found by then.
    """
    start_s, start_cpu_s = time.perf_counter(), time.process_time()
    found: Plan | None = None
    reason = ""
    try:
        with _within(limit_s):
            found = _told(load_planner(name), limit_s)(problem)
    except (NotSupportedError, InfeasibleError) as error:
        reason = error.message
    except _OutOfTimeError:
        reason = f"out of time after {limit_s:g} s"
    plan_s, cpu_s = time.perf_counter() - start_s, time.process_time() - start_cpu_s
    if found is not None:
        validate(found, problem)
        price = estimate(found, problem)
        found = msgspec.structs.replace(found, estimate=price)
        if price.violations:
            found, reason = None, f"its plan breaks a limit: {price.violations[0]}"
    return Outcome(found, reason, plan_s, cpu_s)


def _told(planner: Planner, limit_s: float) -> Planner:
    if "time_limit_s" not in inspect.signature(planner).parameters or limit_s >= _LONG_S:
        return planner
    searching: Callable[..., Plan] = planner
    return functools.partial(searching, time_limit_s=_PART_TO_SEARCH * limit_s)


@contextmanager
def _within(limit_s: float) -> Generator[None, None, None]:
    def stop(_signal: int, _frame: FrameType | None) -> None:
        raise _OutOfTimeError

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, limit_s)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def compare_pair(chain: LayerChain, cluster: Cluster, *, limit_s: float) -> Iterator[PlannerRow]:
    """Every planner for every goal."""
    for goal, objective in GOALS.items():
        problem = make_problem(chain, cluster, objective=objective)
        for name in (name for name in PLANNERS if name not in _INSIDE_AUTO):
            outcome = run_planner(name, problem, limit_s=limit_s)
            row = PlannerRow(
                model=chain.model, cluster=cluster.name, goal=goal, planner=name, reason=outcome.reason,
                plan_s=outcome.plan_s,
            )  # fmt: skip
            yield row if outcome.plan is None else _with_plan(row, outcome.plan, problem)


def _with_plan(row: PlannerRow, plan: Plan, problem: Problem) -> PlannerRow:
    price, certificate = plan.estimate, plan.certificate
    assert price is not None
    per_sample_s = 1 / price.samples_per_s
    return msgspec.structs.replace(
        row,
        value=plan.objective.value(energy_j_per_sample=price.energy_j_per_sample, s_per_sample=per_sample_s),
        energy_j_per_sample=price.energy_j_per_sample,
        samples_per_s=price.samples_per_s,
        lower_bound=certificate.lower_bound if certificate else None,
        gap_ratio=certificate.gap_ratio if certificate else None,
        parallelism=parallelism_name(plan),
        devices_n=len(plan.devices),
        micro_batch=plan.micro_batch,
        error_ratio=error_row(plan, problem).error,
    )


def flaws(rows: Iterable[PlannerRow]) -> list[str]:
    """Searching planners that are beaten, or whose bound is: there must be none."""
    found: list[str] = []
    groups: dict[tuple[str, str, str], list[PlannerRow]] = {}
    for row in rows:
        groups.setdefault((row.model, row.cluster, row.goal), []).append(row)
    for (model, cluster, goal), members in groups.items():
        values = {row.planner: row.value for row in members if row.value is not None}
        if not values:
            continue
        best = min(values, key=lambda name: values[name])
        where = f"{model} × {cluster}, least {goal}"
        for row in members:
            if row.planner not in SEARCHING:
                continue
            if row.value is None and row.reason.startswith("its plan"):
                found.append(f"{where}: {row.planner}: {row.reason}")
            if row.value is not None and row.value > values[best] * (1 + _ROUNDING):
                found.append(f"{where}: {row.planner} is beaten by {best} by {row.value / values[best] - 1:.2%}")
            if row.lower_bound is not None and values[best] < row.lower_bound * (1 - _ROUNDING):
                found.append(
                    f"{where}: the bound of {row.planner} is {row.lower_bound / values[best] - 1:.2%} above {best}"
                )
    return found


def compare_table(rows: Sequence[PlannerRow]) -> str:
    """One line per planner of one pair and goal."""
    first = rows[0]
    lines = [
        f"{first.model} × {first.cluster}, least {first.goal}",
        f"  {'planner':14} {'J/sample':>10} {'samples/s':>10} {'gap':>7} {'plan s':>7} {'sim':>7}  plan",
    ]
    for row in rows:
        if row.energy_j_per_sample is None:
            lines.append(f"  {row.planner:14} {'–':>10} {'–':>10} {'–':>7} {row.plan_s:>7.2f} {'–':>7}  {row.reason}")
            continue
        gap = "–" if row.gap_ratio is None else f"{row.gap_ratio:.1%}"
        what = f"{row.parallelism}, {row.devices_n} devices, micro-batch {row.micro_batch}"
        lines.append(
            f"  {row.planner:14} {row.energy_j_per_sample:>10.4g} {row.samples_per_s:>10.4g} {gap:>7} "
            f"{row.plan_s:>7.2f} {row.error_ratio:>+7.1%}  {what}"
        )
    return "\n".join(lines) + "\n"


# Column -> the planners whose best plan it is, and whether their goal is time or that of the row.
_YARDSTICKS: dict[str, tuple[tuple[str, ...], bool]] = {
    "time-optimal": (SEARCHING, True),
    "data": (("data", "data-equal"), False),
    "pipeline": (("pipeline",), False),
    "asteroid": (("asteroid",), False),
    "single": (("single",), False),
}


def savings_table(rows: Iterable[PlannerRow]) -> str:
    """What the energy plan saves per sample, and how many times longer it takes, against each yardstick."""
    groups: dict[tuple[str, str], list[PlannerRow]] = {}
    for row in rows:
        groups.setdefault((row.model, row.cluster), []).append(row)
    lines = [f"{'energy plan: J saved, × the time':52} " + " ".join(f"{name:>16}" for name in _YARDSTICKS)]
    for (model, cluster), members in groups.items():
        own = _best(members, SEARCHING, "energy")
        cells = [
            _saving(own, _best(members, planners, "time" if fastest else "energy"))
            for planners, fastest in _YARDSTICKS.values()
        ]
        lines.append(f"{model + ' × ' + cluster:52} " + " ".join(f"{cell:>16}" for cell in cells))
    return "\n".join(lines) + "\n"


def _saving(own: PlannerRow | None, other: PlannerRow | None) -> str:
    if own is None or own.energy_j_per_sample is None or own.samples_per_s is None:
        return "–"
    if other is None or other.energy_j_per_sample is None or other.samples_per_s is None:
        return "–"
    saved = 1 - own.energy_j_per_sample / other.energy_j_per_sample
    return f"{saved:.1%} ×{other.samples_per_s / own.samples_per_s:.2f}"


def _best(rows: Iterable[PlannerRow], planners: Sequence[str], goal: Goal) -> PlannerRow | None:
    found = [(row.value, row) for row in rows if row.planner in planners and row.goal == goal and row.value is not None]
    return min(found, key=lambda pair: pair[0])[1] if found else None
