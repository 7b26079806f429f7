"""What ``greentrain schedule`` is asked for, from its options to a Problem."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from greentrain.carbon import Intensity, IntensitySeries
from greentrain.cli._cluster import load_cluster
from greentrain.cli._problem import Selection, choose_model, make_problem, model_for_cluster, select_devices
from greentrain.cluster import Cluster
from greentrain.errors import InfeasibleError, UsageError
from greentrain.objective import Objective, ObjectiveKind, Parallelism, Problem
from greentrain.units import Dimension, parse_quantity

if TYPE_CHECKING:
    from greentrain.workloads.workload import Workload

__all__ = ["Asked", "ScheduleOptions", "asked_problem", "read_intensity"]


@dataclass(frozen=True, kw_only=True)
class ScheduleOptions:
    """The options as click gives them."""

    minimise: ObjectiveKind
    cluster_path: Path
    profiles: Path
    model: str | None
    planner: str
    parallelism: Parallelism | Literal["any"]
    batch: int | None
    micro_batches: tuple[int, ...]
    recompute: bool
    include: tuple[str, ...]
    exclude: tuple[str, ...]
    simulated: bool
    deadline: str | None
    energy_budgets: tuple[str, ...]
    power_caps: tuple[str, ...]
    samples: int | None
    epochs: int | None
    max_slowdown: float | None
    count_unused: bool
    intensity_g: float | None
    intensity_path: Path | None
    earliest: str | None
    time_limit_s: float | None
    gap_ratio: float | None
    frontier: bool
    pick: str | None
    explained: bool
    checked: Path | None
    output: Path
    as_json: bool


@dataclass(frozen=True, kw_only=True)
class Asked:
    """The problem, and which devices may not take part.

    Attributes:
        problem: What to plan.
        selection: Devices that may take part and why the others may not.
    """

    problem: Problem
    selection: Selection


def asked_problem(options: ScheduleOptions) -> Asked:
    """Read the work folder and the limits.

    Raises:
        UsageError: A file, an option or an argument is wrong.
        InfeasibleError: The wishes contradict each other.
    """
    file, cluster = load_cluster(options.cluster_path)
    selection = select_devices(
        file, cluster, include=options.include, exclude=options.exclude, simulated=options.simulated
    )
    _check_wishes(options)
    name = choose_model(options.profiles, options.model)
    profile = model_for_cluster(options.profiles, name, file, selection.cluster)
    from greentrain.workloads import load_workload

    workload = load_workload(profile.workload or name)
    batch, micro_batches = _batches(workload, options.batch)
    problem = make_problem(
        profile, selection.cluster, _objective(options, cluster, selection.cluster, workload, batch), batch=batch,
        micro_batches=options.micro_batches or micro_batches, optimizer=workload.optimizer,
        parallelism=options.parallelism, recompute=options.recompute,
    )  # fmt: skip
    return Asked(problem=problem, selection=selection)


def read_intensity(options: ScheduleOptions) -> Intensity | IntensitySeries | None:
    """The grid's carbon intensity, where it is given.

    Raises:
        UsageError: Both a value and a series are given, or one is wrong.
    """
    from greentrain_datasets.carbon import intensity, intensity_series

    if options.intensity_g is not None and options.intensity_path is not None:
        raise click.UsageError("--intensity and --intensity-series exclude each other.")
    if options.intensity_path is not None:
        return intensity_series(options.intensity_path)
    if options.intensity_g is None:
        return None
    return intensity(country=None, kg_per_kwh=options.intensity_g / 1e3)


def _check_wishes(options: ScheduleOptions) -> None:
    if options.samples is not None and options.epochs is not None:
        raise click.UsageError("--samples and --epochs both say how long the job is; give one.")
    needs_job = options.deadline or options.energy_budgets or options.intensity_path
    if needs_job and options.samples is None and options.epochs is None:
        raise click.UsageError(
            "--deadline, --energy-budget and --intensity-series need --samples or --epochs (how long the whole job is)."
        )
    slowdown = options.max_slowdown
    if slowdown is not None and not math.isfinite(slowdown):
        raise click.BadParameter(f"{slowdown} is not a finite number.", param_hint="'--max-slowdown'")
    if slowdown is not None and slowdown < 1:
        raise InfeasibleError(
            f"--max-slowdown {slowdown:g} asks for a plan faster than the fastest one.",
            hint="1 is the smallest that works; it allows the fastest plan only.",
        )


def _objective(
    options: ScheduleOptions, cluster: Cluster, selected: Cluster, workload: Workload, batch: int
) -> Objective:
    whole = [text for text in options.energy_budgets if "=" not in text]
    if len(whole) > 1:
        raise click.UsageError("--energy-budget is given twice for the whole job; name a device: DEVICE=20Wh.")
    own = [text for text in options.energy_budgets if "=" in text]
    return Objective(
        minimise=options.minimise,
        deadline_s=parse_quantity(options.deadline, "time", where="--deadline", minimum=1e-3)
        if options.deadline
        else None,
        budget_j=parse_quantity(whole[0], "energy", where="--energy-budget", minimum=1e-3) if whole else None,
        job_samples=options.samples if options.epochs is None else _samples(workload, options.epochs, batch),
        max_slowdown=options.max_slowdown,
        count_idle_of_unused=options.count_unused,
        power_cap_w=_by_device(options.power_caps, "power", "--power-cap", cluster, selected),
        device_budget_j=_by_device(own, "energy", "--energy-budget", cluster, selected),
    )


def _by_device(
    texts: list[str] | tuple[str, ...], dimension: Dimension, where: str, cluster: Cluster, selected: Cluster
) -> dict[str, float]:
    """``DEVICE=VALUE`` by device; those of devices that take no part are left out."""
    found: dict[str, float] = {}
    for text in texts:
        name, separator, value = text.partition("=")
        if not separator:
            raise UsageError(f"{where}: {text!r} names no device.", hint=f"Write {where} DEVICE=VALUE.")
        cluster.device(name)
        if name in found:
            raise UsageError(f"{where}: {name} is given twice.", hint="Give it once.")
        found[name] = parse_quantity(value, dimension, where=f"{where} {name}", minimum=1e-3)
    return {name: value for name, value in found.items() if any(device.id == name for device in selected.devices)}


def _samples(workload: Workload, epochs: int, batch: int) -> int:
    """Samples of whole rounds in so many passes over the training data, as training counts them."""
    from greentrain_datasets.loaders import load_dataset

    rows = len(load_dataset(workload.dataset).train_targets)
    if rows < batch:
        raise UsageError(f"--epochs: the data set has {rows} samples, fewer than the batch of {batch}.")
    return epochs * (rows // batch) * batch


def _batches(workload: Workload, batch: int | None) -> tuple[int, tuple[int, ...]]:
    """The batch and its candidate micro-batches."""
    if batch is None or batch == workload.batch:
        return workload.batch, workload.micro_batches
    dividing = tuple(size for size in workload.micro_batches if batch % size == 0)
    return batch, dividing or (batch,)
