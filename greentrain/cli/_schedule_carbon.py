"""When to start a job, and with which plan of the frontier, so that it emits least."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import datetime, timezone
from math import inf

import msgspec

from greentrain.carbon import Intensity, IntensitySeries, cleanest_start_s, co2e_kg
from greentrain.cost import job_s
from greentrain.errors import InfeasibleError
from greentrain.objective import Problem
from greentrain.plan import Plan
from greentrain.units import format_quantity

__all__ = ["Job", "Start", "best_start", "job_of", "job_text", "start_text"]


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """The whole job.

    Attributes:
        samples: Samples trained on.
        duration_s: Seconds, waking included.
        energy_j: Joules of all devices.
        co2e_kg: Kilograms of CO2e (None without an intensity).
    """

    samples: int
    duration_s: float
    energy_j: float
    co2e_kg: float | None


class Start(msgspec.Struct, frozen=True, kw_only=True):
    """When to start.

    Attributes:
        start_utc: Instant of the start.
        number: Position of the plan among those that were tried, from 0.
        tried_n: Plans that were tried.
        co2e_kg: What the job emits then.
        now_co2e_kg: The least that a start at the earliest instant would emit.
        leanest_co2e_kg: What the plan with the least energy would emit at its best start.
        source: The series.
    """

    start_utc: str
    number: int
    tried_n: int
    co2e_kg: float
    now_co2e_kg: float
    leanest_co2e_kg: float
    source: str


def job_of(plan: Plan, problem: Problem, intensity: Intensity | None) -> Job | None:
    """The whole job's figures; None where its length is not known."""
    samples, price = problem.objective.job_samples, plan.estimate
    if samples is None or price is None:
        return None
    energy_j = price.energy_j_per_sample * samples
    return Job(
        samples=samples,
        duration_s=job_s(plan, problem, price.step_s),
        energy_j=energy_j,
        co2e_kg=None if intensity is None else co2e_kg(energy_j, intensity),
    )


def best_start(plans: Sequence[Plan], problem: Problem, series: IntensitySeries, earliest_s: float | None) -> Start:
    """The plan and the start that emit least, the job's power taken as constant.

    Args:
        plans: Plans to choose from, such as a frontier.
        problem: Gives the job and its deadline, counted from the earliest start.
        series: Intensity over time.
        earliest_s: Seconds since 1970 UTC; None: now.

    Raises:
        InfeasibleError: No plan ends before the deadline.
        UsageError: The series does not cover the job.
    """
    earliest_s = time.time() if earliest_s is None else earliest_s
    deadline_s = earliest_s + (problem.objective.deadline_s or inf)
    found: list[tuple[float, int, float]] = []
    now_kg: list[float] = []
    late: InfeasibleError | None = None
    for number, plan in enumerate(plans):
        job = job_of(plan, problem, None)
        assert job is not None
        try:
            start_s = cleanest_start_s(series, job.duration_s, earliest_s=earliest_s, deadline_s=deadline_s)
        except InfeasibleError as error:
            late = error
            continue
        found.append((co2e_kg(job.energy_j, series.mean(start_s, start_s + job.duration_s)), number, start_s))
        now_kg.append(co2e_kg(job.energy_j, series.mean(earliest_s, earliest_s + job.duration_s)))
    if not found:
        assert late is not None
        raise late
    least_kg, number, start_s = min(found)
    leanest = min(found, key=lambda entry: _energy_j(plans[entry[1]]))
    return Start(
        start_utc=datetime.fromtimestamp(start_s, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        number=number, tried_n=len(plans), co2e_kg=least_kg, now_co2e_kg=min(now_kg), leanest_co2e_kg=leanest[0],
        source=series.source,
    )  # fmt: skip


def _energy_j(plan: Plan) -> float:
    assert plan.estimate is not None
    return plan.estimate.energy_j_per_sample


def job_text(job: Job, intensity: Intensity | None) -> str:
    """The whole job in one line."""
    parts = [
        f"Job of {job.samples} samples: {format_quantity(job.duration_s, 'time')}",
        f"{job.energy_j / 3600:.4g} Wh",
    ]
    if job.co2e_kg is not None and intensity is not None:
        parts.append(f"{_mass(job.co2e_kg)} CO2e ({intensity.kg_per_kwh * 1e3:.4g} g/kWh, {intensity.source})")
    return ", ".join(parts) + " (modelled)"


def start_text(start: Start) -> str:
    """When to start, and what that saves."""
    lines = [f"Start at {start.start_utc}: {_mass(start.co2e_kg)} CO2e ({start.source})"]
    if start.now_co2e_kg > start.co2e_kg * (1 + 1e-9):
        saved = 1 - start.co2e_kg / start.now_co2e_kg
        lines.append(f"  starting at the earliest instant would emit {_mass(start.now_co2e_kg)}: {saved:.1%} saved")
    else:
        lines.append("  no later start emits less")
    if start.leanest_co2e_kg > start.co2e_kg * (1 + 1e-9):
        lines.append(f"  the plan with the least energy would emit {_mass(start.leanest_co2e_kg)} at its best start")
    return "\n".join(lines)


def _mass(value_kg: float) -> str:
    for unit, factor in (("kg", 1.0), ("g", 1e-3), ("mg", 1e-6)):
        if value_kg >= factor:
            return f"{value_kg / factor:.3g} {unit}"
    return f"{value_kg / 1e-9:.3g} µg"
