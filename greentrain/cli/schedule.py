"""``greentrain schedule``: choose devices, shares and operating points, and say why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import click
import msgspec

from greentrain.carbon import Intensity, IntensitySeries
from greentrain.cli._common import CLUSTER_FILE, PROFILES_DIR, emit_json, json_option, say
from greentrain.cli._plan_text import device_list, explanation_text, plan_text, price_line
from greentrain.cli._progress import Patience
from greentrain.cli._schedule_adapters import AdapterOptions, schedule_adapters
from greentrain.cli._schedule_carbon import Job, Start, best_start, job_of, job_text, start_text
from greentrain.cli._schedule_check import check_plan, origin_of
from greentrain.cli._schedule_frontier import (
    FRONTIER_SCHEMA,
    FrontierFile,
    best_number,
    frontier_file,
    frontier_path,
    frontier_text,
    number_of_pick,
    priced_again,
    read_frontier,
)
from greentrain.cli._schedule_options import Asked, ScheduleOptions, asked_problem, read_intensity
from greentrain.cli._schedule_search import Planning, certified_on
from greentrain.errors import InfeasibleError
from greentrain.explain import Explanation, explain
from greentrain.explain.infeasible import why_infeasible
from greentrain.files import write_json
from greentrain.objective import Parallelism, Problem
from greentrain.plan import PLAN_SCHEMA, Plan, time_optimal_path, validate
from greentrain.planners import PLANNERS
from greentrain.rescore import Finalist, rescored
from greentrain.units import format_quantity

__all__ = ["command"]

# Explaining takes no longer than planning did, but for small problems this long.
_EXPLAIN_S = 2.0
_LONGEST_EXPLAIN_S = 10.0

_FILE = click.Path(path_type=Path, dir_okay=False)


@click.command("schedule")
@click.option(
    "--objective",
    "minimise",
    type=click.Choice(["energy", "time", "edp", "carbon"]),
    default="energy",
    show_default=True,
    help="What to minimise.",
)
@click.option("--cluster", "cluster_path", type=click.Path(path_type=Path), default=CLUSTER_FILE, show_default=True)
@click.option("--profiles", type=click.Path(path_type=Path), default=PROFILES_DIR, show_default=True)
@click.option("--model", help="A profiled model; not needed when there is only one.")
@click.option("--planner", type=click.Choice(list(PLANNERS)), default="auto", show_default=True)
@click.option(
    "--parallelism", type=click.Choice(["any", *get_args(Parallelism)]), default="any", show_default=True,
    help="Only plans of this sort.",
)  # fmt: skip
@click.option("--batch", type=click.IntRange(min=1), help="Samples per optimizer step; the workload's own by default.")
@click.option("--micro-batch", "micro_batches", type=click.IntRange(min=1), multiple=True, help="Candidate sizes.")
@click.option("--recompute", is_flag=True, help="Compute activations again instead of keeping them: less memory.")
@click.option("--include", multiple=True, metavar="DEVICE", help="Plan with these devices only.")
@click.option("--exclude", multiple=True, metavar="DEVICE", help="Plan without these devices.")
@click.option("--simulated", is_flag=True, help="Also plan with catalogue devices that cannot run here.")
@click.option("--method", type=click.Choice(["train", "parallel-adapters"]), default="train", show_default=True,
              help="parallel-adapters: both phases of fine-tuning, with their cache.")  # fmt: skip
@click.option("--cache-dtype", type=click.Choice(["float32", "float16", "int8"]), default="float16",
              help="How the cache of parallel adapters is kept.")  # fmt: skip
@click.option("--cache-disk", metavar="20GB", help="Most bytes of that cache on each device.")
@click.option("--storage", metavar="80MB", help="Bytes per second of the devices' disks, for that cache.")
@click.option("--tokens", type=click.FloatRange(min=1), help="Mean tokens of a text, for that cache.")
@click.option("--samples", type=click.IntRange(min=1), help="Samples of the whole job.")
@click.option("--epochs", type=click.IntRange(min=1), help="The whole job in passes over the workload's data.")
@click.option("--deadline", metavar="2h", help="The whole job must end within this time.")
@click.option("--max-slowdown", type=float, metavar="X", help="At most this many times the fastest round.")
@click.option(
    "--energy-budget", "energy_budgets", multiple=True, metavar="[DEVICE=]40Wh",
    help="Energy that the whole job may take, in all or on one device.",
)  # fmt: skip
@click.option(
    "--power-cap", "power_caps", multiple=True, metavar="DEVICE=7W", help="Only operating points that draw no more."
)
@click.option("--count-unused", is_flag=True, help="Devices that are on but unused count too.")
@click.option(
    "--intensity", "intensity_g", type=click.FloatRange(min=0), metavar="G", help="Grid intensity in g CO2e per kWh."
)
@click.option(
    "--intensity-series", "intensity_path", type=_FILE, metavar="FILE.csv",
    help="Grid intensity over time (time, g per kWh): the cleanest start; with --objective carbon also the plan.",
)  # fmt: skip
@click.option(
    "--start-after", "earliest", metavar="TIME", help="Earliest start with --intensity-series [default: now]."
)
@click.option("--time-limit", "time_limit_s", type=click.FloatRange(min=0), metavar="S", help="Seconds for a search.")
@click.option("--gap", "gap_ratio", type=click.FloatRange(min=0), metavar="RATIO", help="Good enough: 0.01 = 1 %.")
@click.option("--frontier", is_flag=True, help="All plans that no other beats in both time and energy.")
@click.option("--pick", metavar="N|best", help="Take this row of the frontier, an earlier one without --frontier.")
@click.option("--explain/--no-explain", "explained", default=True, help="Ask the search what would be otherwise.")
@click.option("--check", "checked", type=_FILE, metavar="PLAN", help="Only check whether this plan still holds.")
@click.option("-o", "--output", type=_FILE, default=Path("plan.json"), show_default=True)
@json_option
def command(**given: Any) -> int | None:
    """Choose which devices take part, with which share and in which mode, and say why."""
    own = {name: given.pop(name) for name in ("method", "cache_dtype", "cache_disk", "storage", "tokens")}
    if own["method"] == "parallel-adapters":
        schedule_adapters(given, AdapterOptions(**own))
        return None
    options = ScheduleOptions(**given)
    if options.checked is not None:
        return check_plan(options.checked, options.cluster_path, options.profiles, as_json=options.as_json)
    asked = asked_problem(options)
    intensity = read_intensity(options)
    if options.earliest is not None and not isinstance(intensity, IntensitySeries):
        raise click.UsageError("--start-after goes with --intensity-series.")
    with Patience(quiet=options.as_json) as patience:
        planning = Planning(options.planner, patience, options.time_limit_s, options.gap_ratio)
        names = device_list([device.id for device in asked.problem.cluster.devices])
        say(f"Planning {asked.problem.model.model} over {names} …", quiet=options.as_json)
        made = _make(options, asked, planning, intensity)
    _write(made, options.output)
    if options.as_json:
        emit_json(
            {
                "plan": made.plan, "simulated": made.finalists[0].simulated, "time_optimal": made.fastest,
                "frontier": made.frontier, "explanation": made.explanation, "job": made.job, "start": made.start,
                "file": str(options.output),
            }
        )  # fmt: skip
    else:
        click.echo(_text(made, asked, intensity, options.output, interrupted=patience.interrupted))
    return None


@dataclass(frozen=True, kw_only=True)
class _Made:
    """All that one call of the command finds."""

    plan: Plan
    finalists: tuple[Finalist, ...]
    fastest: Plan | None
    frontier: FrontierFile | None
    explanation: Explanation | None
    job: Job | None
    start: Start | None


def _make(
    options: ScheduleOptions, asked: Asked, planning: Planning, intensity: Intensity | IntensitySeries | None
) -> _Made:
    problem = asked.problem
    series = intensity if isinstance(intensity, IntensitySeries) else None
    origin = origin_of(problem)
    frontier: FrontierFile | None = None
    by_grid = series is not None and options.minimise == "carbon"
    if options.frontier or options.pick is not None or by_grid:
        picked_plan, frontier = _from_frontier(options, problem, planning, series)
        candidates = (picked_plan,)
    else:
        try:
            candidates = planning.finalists(problem)
        except InfeasibleError as error:
            raise why_infeasible(problem, planning.quick, error) from error
    # The simulated round decides between plans that the formula finds nearly alike.
    finalists = rescored(candidates, problem)
    plan = finalists[0].plan
    start: Start | None = None
    if series is not None:
        # Of a frontier all plans are tried again, to tell what the chosen one saves.
        tried = [row.plan for row in frontier.rows] if frontier is not None and by_grid and not options.pick else [plan]
        start = _start(tried, options, problem, series)
    took_s = planning.searched_s
    fastest = _fastest(problem, planning, frontier)
    explanation: Explanation | None = None
    picked = options.pick is not None and options.pick != "best"
    asks = options.explained and planning.searches and not picked and not by_grid
    if asks and not planning.patience.interrupted:
        explanation = explain(
            plan, problem, budget_s=min(max(took_s, _EXPLAIN_S), options.time_limit_s or _LONGEST_EXPLAIN_S),
            planning_s=took_s, fastest_s=_round_s(fastest), stopped=lambda: planning.patience.interrupted,
        )  # fmt: skip
    reasons = {} if explanation is None else {name: why.sentence for name, why in explanation.devices.items()}
    plan = msgspec.structs.replace(plan, origin=origin, reasons={**reasons, **asked.selection.left_out})
    fastest = None if fastest is None else msgspec.structs.replace(fastest, origin=origin)
    constant = intensity if isinstance(intensity, Intensity) else None
    return _Made(
        plan=plan, finalists=finalists, fastest=fastest, frontier=frontier, explanation=explanation,
        job=job_of(plan, problem, constant), start=start,
    )  # fmt: skip


def _fastest(problem: Problem, planning: Planning, frontier: FrontierFile | None) -> Plan | None:
    """The time-optimal plan under the same limits; None where the objective is time, or nobody wants to wait."""
    if problem.objective.minimise == "time":
        return None
    if frontier is not None:
        return frontier.rows[0].plan
    return None if planning.patience.interrupted else planning.fastest(problem)


def _round_s(plan: Plan | None) -> float | None:
    return None if plan is None or plan.estimate is None else plan.estimate.step_s


def _from_frontier(
    options: ScheduleOptions, problem: Problem, planning: Planning, series: IntensitySeries | None
) -> tuple[Plan, FrontierFile]:
    """The frontier, and the plan that the objective, ``--pick`` or the grid takes from it."""
    if options.frontier or options.pick is None:
        try:
            found = planning.frontier(problem)
        except InfeasibleError as error:
            raise why_infeasible(problem, planning.quick, error) from error
        plans = [certified_on(found, plan, problem) for plan in found.plans]
        whole, method = found.exact, found.method
    else:
        file = read_frontier(frontier_path(options.output))
        for row in file.rows:
            validate(row.plan, problem)
        if file.origin != origin_of(problem):
            say("Remark: the frontier was made from other profiles or devices; its plans are priced with the present.")
        plans, whole, method = priced_again(file, problem), file.exact, file.method
    number = None if options.pick is None else number_of_pick(options.pick, len(plans))
    if number is None and series is not None and options.minimise == "carbon":
        number = _start(plans, options, problem, series).number + 1
    number = number or best_number(plans, problem)
    plan = plans[number - 1]
    price = plan.estimate
    if price is not None and price.violations:
        raise InfeasibleError(f"row {number} of the frontier breaks a limit: {price.violations[0]}.")
    file = frontier_file(plans, number, exact=whole, method=method, origin=origin_of(problem))
    return plan, file


def _start(
    plans: Sequence[Plan], options: ScheduleOptions, problem: Problem, series: IntensitySeries
) -> Start:  # fmt: skip
    from greentrain_datasets.carbon import parse_utc

    earliest_s = None if options.earliest is None else parse_utc(options.earliest, where="--start-after")
    return best_start(plans, problem, series, earliest_s)


def _write(made: _Made, output: Path) -> None:
    write_json(output, made.plan, schema=PLAN_SCHEMA)
    if made.fastest is not None:
        write_json(time_optimal_path(output), made.fastest, schema=PLAN_SCHEMA)
    if made.frontier is not None:
        write_json(frontier_path(output), made.frontier, schema=FRONTIER_SCHEMA)


def _text(
    made: _Made, asked: Asked, intensity: Intensity | IntensitySeries | None, output: Path, *, interrupted: bool
) -> str:
    parts: list[str] = []
    if interrupted:
        parts.append("Interrupted: this is the best plan so far; what comes after it was not asked.")
    if made.frontier is not None:
        parts.append(frontier_text(made.frontier))
    parts.append(f"{plan_text(made.plan, asked.problem)}\n\n{_simulated(made.finalists)}")
    if made.explanation is not None:
        parts.append(explanation_text(made.explanation))
    if made.job is not None:
        parts.append(job_text(made.job, intensity if isinstance(intensity, Intensity) else None))
    if made.start is not None:
        parts.append(start_text(made.start))
    if made.fastest is not None:
        parts.append(f"Time-optimal plan beside it: {price_line(made.fastest)}\n{_saving(made.plan, made.fastest)}")
    files = [output]
    files += [time_optimal_path(output)] if made.fastest is not None else []
    files += [frontier_path(output)] if made.frontier is not None else []
    parts.append(f"Written: {' and '.join(str(path) for path in files)}")
    return "\n\n".join(parts)


def _simulated(finalists: Sequence[Finalist]) -> str:
    simulated, price = finalists[0].simulated, finalists[0].plan.estimate
    assert price is not None
    beside = f"; {len(finalists)} nearly equal plans were simulated" if len(finalists) > 1 else ""
    return (
        f"Simulated: a round of {format_quantity(simulated.step_s, 'time')} "
        f"({simulated.step_s / price.step_s - 1:+.1%} against the formula), "
        f"{simulated.energy_j_per_sample:.4g} J/sample{beside}"
    )


def _saving(chosen: Plan, fastest: Plan) -> str:
    assert chosen.estimate is not None
    assert fastest.estimate is not None
    saved = 1 - chosen.estimate.energy_j_per_sample / fastest.estimate.energy_j_per_sample
    slower = chosen.estimate.step_s / fastest.estimate.step_s
    if abs(saved) < 5e-4 and abs(slower - 1) < 5e-4:
        return "The chosen plan is also the fastest."
    return f"Against it the chosen plan saves {saved:.1%} energy and takes {slower:.2f} times as long (both modelled)."
