"""``greentrain schedule``: choose devices, shares and operating points, and say why."""

from __future__ import annotations

import math
from pathlib import Path

import click
import msgspec

from greentrain.cli._cluster import load_cluster
from greentrain.cli._common import CLUSTER_FILE, PROFILES_DIR, emit_json, json_option, say
from greentrain.cli._plan_text import plan_text, price_line
from greentrain.cli._problem import choose_model, make_problem, model_for_cluster, select_devices
from greentrain.errors import InfeasibleError, NotSupportedError
from greentrain.explain import reasons
from greentrain.files import write_json
from greentrain.objective import Objective, ObjectiveKind, Optimizer, Problem
from greentrain.plan import PLAN_SCHEMA, Plan, time_optimal_path
from greentrain.planners import PLANNERS, load_planner
from greentrain.units import parse_quantity

__all__ = ["command"]


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
@click.option("--batch", type=click.IntRange(min=1), help="Samples per optimizer step; the workload's own by default.")
@click.option("--micro-batch", "micro_batches", type=click.IntRange(min=1), multiple=True, help="Candidate sizes.")
@click.option("--include", multiple=True, metavar="DEVICE", help="Plan with these devices only.")
@click.option("--exclude", multiple=True, metavar="DEVICE", help="Plan without these devices.")
@click.option("--simulated", is_flag=True, help="Also plan with catalogue devices that cannot run here.")
@click.option("--deadline", metavar="2h", help="The job of --samples must end within this time.")
@click.option("--energy-budget", metavar="40Wh", help="Energy that the job of --samples may take.")
@click.option("--samples", type=click.IntRange(min=1), help="Samples of the whole job (epochs × data set).")
@click.option("--max-slowdown", type=click.FloatRange(min=1.0), help="At most this many times the fastest round.")
@click.option("--count-unused", is_flag=True, help="Devices that are on but unused count with their idle power.")
@click.option("--frontier", is_flag=True, help="The exact time-energy frontier.")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path, dir_okay=False), default=Path("plan.json"), show_default=True
)
@json_option
def command(
    minimise: ObjectiveKind, cluster_path: Path, profiles: Path, model: str | None, planner: str,
    batch: int | None, micro_batches: tuple[int, ...], include: tuple[str, ...], exclude: tuple[str, ...],
    simulated: bool, deadline: str | None, energy_budget: str | None, samples: int | None,
    max_slowdown: float | None, count_unused: bool, frontier: bool, output: Path, as_json: bool,
) -> None:  # fmt: skip
    """Choose which devices take part, with which share and in which mode, and say why."""
    if frontier:
        raise NotSupportedError(
            "--frontier is not supported yet.", hint="Compare --objective energy, edp and time for now."
        )
    if (deadline or energy_budget) and samples is None:
        raise click.UsageError("--deadline and --energy-budget need --samples (the samples of the whole job).")
    if max_slowdown is not None and not math.isfinite(max_slowdown):
        raise click.BadParameter(f"{max_slowdown} is not a finite number.", param_hint="'--max-slowdown'")
    objective = Objective(
        minimise=minimise,
        deadline_s=parse_quantity(deadline, "time", where="--deadline", minimum=1e-3) if deadline else None,
        budget_j=parse_quantity(energy_budget, "energy", where="--energy-budget", minimum=1e-3)
        if energy_budget
        else None,
        job_samples=samples,
        max_slowdown=max_slowdown,
        count_idle_of_unused=count_unused,
    )
    file, cluster = load_cluster(cluster_path)
    selection = select_devices(file, cluster, include=include, exclude=exclude, simulated=simulated)
    name = choose_model(profiles, model)
    profile = model_for_cluster(profiles, name, file, selection.cluster)
    own_batch, own_micro_batches, optimizer = _defaults(profile.workload or name, batch)
    problem = make_problem(
        profile, selection.cluster, objective, batch=own_batch,
        micro_batches=micro_batches or own_micro_batches, optimizer=optimizer,
    )  # fmt: skip
    say(f"Planning {name} over {', '.join(device.id for device in selection.cluster.devices)} …", quiet=as_json)
    chosen = load_planner(planner)(problem)
    chosen = msgspec.structs.replace(chosen, reasons={**reasons(chosen, problem), **selection.left_out})
    fastest = _fastest(problem, planner)
    write_json(output, chosen, schema=PLAN_SCHEMA)
    if fastest is not None:
        write_json(time_optimal_path(output), fastest, schema=PLAN_SCHEMA)
    if as_json:
        emit_json({"plan": chosen, "time_optimal": fastest, "file": str(output)})
        return
    click.echo(plan_text(chosen, problem))
    if fastest is not None:
        click.echo(f"\nTime-optimal plan beside it: {price_line(fastest)}")
        click.echo(_saving(chosen, fastest))
    click.echo(f"\nWritten: {output}" + (f" and {time_optimal_path(output)}" if fastest else ""))


def _defaults(model: str, batch: int | None) -> tuple[int, tuple[int, ...], Optimizer]:
    """Batch, candidate micro-batches and optimizer of the workload."""
    from greentrain.workloads import load_workload

    workload = load_workload(model)
    if batch is None or batch == workload.batch:
        return workload.batch, workload.micro_batches, workload.optimizer
    dividing = tuple(size for size in workload.micro_batches if batch % size == 0)
    return batch, dividing or (batch,), workload.optimizer


def _fastest(problem: Problem, planner: str) -> Plan | None:
    """The time-optimal plan under the same limits; None where the objective is time already."""
    if problem.objective.minimise == "time":
        return None
    objective = msgspec.structs.replace(problem.objective, minimise="time", max_slowdown=None)
    try:
        return load_planner(planner)(msgspec.structs.replace(problem, objective=objective))
    except InfeasibleError:
        return None


def _saving(chosen: Plan, fastest: Plan) -> str:
    assert chosen.estimate is not None
    assert fastest.estimate is not None
    saved = 1 - chosen.estimate.energy_j_per_sample / fastest.estimate.energy_j_per_sample
    slower = chosen.estimate.step_s / fastest.estimate.step_s
    if abs(saved) < 5e-4 and abs(slower - 1) < 5e-4:
        return "The chosen plan is also the fastest."
    return f"Against it the chosen plan saves {saved:.1%} energy and takes {slower:.2f} times as long (both modelled)."
