"""From the work folder's files to a Problem, for the commands that plan, simulate and train."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Generator, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec

from greentrain.actions import lower
from greentrain.cli._cluster import load_cluster
from greentrain.cli._common import say
from greentrain.cluster import Cluster
from greentrain.cluster_file import ClusterFile
from greentrain.errors import InfeasibleError, UsageError
from greentrain.files import read_json
from greentrain.objective import Objective, Optimizer, Parallelism, Problem
from greentrain.plan import PLAN_SCHEMA, Plan, check_cluster, check_model
from greentrain.profile import LayerTimes, ModelProfile
from greentrain.profile_files import model_names, read_model_profile

__all__ = [
    "Selection",
    "choose_model",
    "load_plan",
    "make_problem",
    "model_for_cluster",
    "problem_of_plan",
    "select_devices",
]


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Which devices may take part, and why the others may not.

    Attributes:
        cluster: The devices that may.
        left_out: Device id to the reason.
    """

    cluster: Cluster
    left_out: dict[str, str]


def choose_model(profiles: Path, name: str | None) -> str:
    """The model that is asked for; else the only one, or of several the first by name.

    Raises:
        UsageError: None was profiled.
    """
    if name is not None:
        return name
    known = model_names(profiles)
    if not known:
        raise UsageError(f"{profiles}: holds no model profile.", hint="Run: greentrain measure --model digits-cnn")
    first, *others = known
    if others:
        say(f"Of the models {', '.join(known)} the first is taken; choose another with --model.")
    return first


def select_devices(
    file: ClusterFile, cluster: Cluster, *, include: Collection[str], exclude: Collection[str], simulated: bool
) -> Selection:
    """Apply --include, --exclude and --simulated.

    Without ``--simulated`` only devices that can run are kept, unless no device can.

    Raises:
        UsageError: An unknown device is named.
        InfeasibleError: A device is both included and excluded, or none is left.
    """
    for name in (*include, *exclude):
        cluster.device(name)
    both = [name for name in include if name in exclude]
    if both:
        raise InfeasibleError(
            f"--include and --exclude both name {', '.join(both)}.", hint=f"Leave out --exclude {both[0]}."
        )
    runnable = {entry.id for entry in file.device if entry.can_run}
    left_out: dict[str, str] = {}
    for device in cluster.devices:
        if device.id in exclude:
            left_out[device.id] = "left out by --exclude"
        elif include and device.id not in include:
            left_out[device.id] = "left out by --include"
        elif runnable and not simulated and device.id not in runnable and device.id not in include:
            left_out[device.id] = "cannot run here (a catalogue device without launch); --simulated plans with it"
    kept = tuple(device.id for device in cluster.devices if device.id not in left_out)
    if not kept:
        raise InfeasibleError("no device is left to plan with.", hint=f"Leave out --exclude {next(iter(exclude))}.")
    return Selection(cluster=cluster.restricted_to(kept), left_out=left_out)


def model_for_cluster(profiles: Path, model: str, file: ClusterFile, cluster: Cluster) -> ModelProfile:
    """The model with layer times for every device: measured ones, and modelled ones for catalogue kinds.

    Raises:
        UsageError: A measured device was never timed with this model.
    """
    profile = read_model_profile(profiles, model)
    catalogue = {entry.id for entry in file.device if entry.kind is not None}
    times = {(entry.kind, entry.point): entry for entry in profile.times}
    for device in cluster.devices:
        for point in device.points:
            key = (device.kind, point.name)
            if key in times:
                continue
            if device.id in catalogue:
                times[key] = _modelled(profile, device.kind, point.name)
            else:
                raise UsageError(
                    f"{profiles}: no times of model {model!r} for device {device.id!r} at point {point.name!r}.",
                    hint=f"Run on it: greentrain measure --id {device.id} --model {model}",
                )
    return profile.with_times(times.values())


def _modelled(profile: ModelProfile, kind: str, point: str) -> LayerTimes:
    from greentrain_datasets.catalogue import modelled_layer_times

    return modelled_layer_times(profile, kind, point)


def load_plan(path: Path) -> Plan:
    """Read a plan file.

    Raises:
        UsageError: Missing, damaged, or no plan.
    """
    return read_json(path, Plan, schema=PLAN_SCHEMA)


def problem_of_plan(
    plan: Plan, path: Path, cluster_path: Path, profiles: Path
) -> tuple[ClusterFile, Problem]:  # fmt: skip
    """The problem that a plan belongs to, with only the devices that its price counts.

    Args:
        plan: The plan.
        path: Its file, named in errors.
        cluster_path: cluster.toml.
        profiles: Folder of profiles.

    Raises:
        UsageError: The plan is for another model, or names unknown devices or points.
    """
    file, cluster = load_cluster(cluster_path)
    with _named(path):
        check_cluster(plan, cluster)
        counted = plan.devices if plan.estimate is None else (*plan.devices, *plan.estimate.energy_j)
        cluster = cluster.restricted_to(counted)
    model = model_for_cluster(profiles, plan.model, file, cluster)
    with _named(path):
        check_model(plan, model)
        lower(plan)
    problem = make_problem(
        model, cluster, plan.objective, batch=plan.batch, micro_batches=(plan.micro_batch,), optimizer=plan.optimizer,
        recompute=plan.recompute,
    )  # fmt: skip
    return file, problem


@contextlib.contextmanager
def _named(path: Path) -> Generator[None, None, None]:
    """Put the plan's file in front of what is wrong with it."""
    try:
        yield
    except UsageError as error:
        error.message = f"{path}: {error.message.removeprefix('plan: ')}"
        raise


def make_problem(
    model: ModelProfile,
    cluster: Cluster,
    objective: Objective,
    *,
    batch: int,
    micro_batches: Iterable[int],
    optimizer: Optimizer,
    parallelism: Parallelism | Literal["any"] = "any",
    recompute: bool = False,
) -> Problem:
    """A checked problem.

    Raises:
        UsageError: A micro-batch does not divide the batch, or another field is wrong.
    """
    try:
        return Problem(
            model=model,
            cluster=cluster,
            objective=objective,
            batch=batch,
            micro_batches=tuple(micro_batches),
            optimizer=optimizer,
            parallelism=parallelism,
            recompute=recompute,
        )
    except (ValueError, msgspec.ValidationError) as error:
        raise UsageError(f"{error}.", hint="Check --batch and --micro-batch.") from error
