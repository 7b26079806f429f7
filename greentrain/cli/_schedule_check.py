"""Whether a plan still holds: made from the same files, valid, within its limits, at the same price."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click
import msgspec

from greentrain.actions import lower
from greentrain.actions import validate as validate_actions
from greentrain.cli._cluster import load_cluster
from greentrain.cli._common import emit_json
from greentrain.cli._problem import load_plan, model_for_cluster, problem_of_plan
from greentrain.cost import estimate
from greentrain.errors import InfeasibleError, UsageError
from greentrain.files import canonical_sha256
from greentrain.objective import Problem
from greentrain.plan import Estimate, Origin, Plan, validate
from greentrain.units import format_quantity
from greentrain.version import VERSION

__all__ = ["check_plan", "origin_of"]

# Exit status of a plan that does not belong to these files, as that of a wrong argument.
_OTHER_FILES_EXIT = 2
# Figures that differ by less are the same.
_SAME = 1e-9


class Checked(msgspec.Struct, frozen=True, kw_only=True):
    """``schedule --check --json``.

    Attributes:
        same: Whether nothing differs.
        differences: What is not as the plan says, one sentence each.
        remarks: What cannot be told, or does not matter.
        estimate: The present price.
    """

    same: bool
    differences: tuple[str, ...]
    remarks: tuple[str, ...]
    estimate: Estimate


def origin_of(problem: Problem) -> Origin:
    """What a plan of this problem is made from."""
    cluster = problem.cluster
    wanted = {(device.kind, point.name) for device in cluster.devices for point in device.points}
    times = sorted(
        (entry for entry in problem.model.times if (entry.kind, entry.point) in wanted),
        key=lambda entry: (entry.kind, entry.point),
    )
    # Where a user's own model lies differs between machines.
    model = msgspec.structs.replace(problem.model.with_times(times), workload=None)
    return Origin(
        model_sha256=canonical_sha256(model),
        cluster_sha256=canonical_sha256(cluster),
        devices=tuple(device.id for device in cluster.devices),
        tool_version=VERSION,
    )


def check_plan(path: Path, cluster_path: Path, profiles: Path, *, as_json: bool) -> int:
    """Compare a plan with the present profiles and cluster.

    Returns:
        The exit status: 0 when it is the same, 2 when it was made from other files.

    Raises:
        UsageError: The plan is for another model, or names unknown devices.
        InfeasibleError: It breaks a limit now.
    """
    plan = load_plan(path)
    _, problem = problem_of_plan(plan, path, cluster_path, profiles)
    validate(plan, problem)
    validate_actions(lower(plan))
    price = estimate(plan, problem)
    differences = (*_origin_differences(plan, cluster_path, profiles), *_figure_differences(plan, price))
    remarks = tuple(_remarks(plan))
    if price.violations:
        raise InfeasibleError(
            f"{path}: {'; '.join((*price.violations, *differences))}.", hint="Run greentrain schedule again."
        )
    if as_json:
        emit_json(Checked(same=not differences, differences=differences, remarks=remarks, estimate=price))
    else:
        lines = [
            *differences,
            *remarks,
            *([] if differences else ["the same model, times, cluster and price; it keeps its limits"]),
        ]
        click.echo("\n".join(f"{path}: {line}." for line in lines))
    return _OTHER_FILES_EXIT if differences else 0


def _remarks(plan: Plan) -> Iterator[str]:
    if plan.origin is None:
        yield "it does not say what it was made from, an older version wrote it"
    elif plan.origin.tool_version != VERSION:
        yield f"greentrain {plan.origin.tool_version} made it, this is {VERSION}"


def _origin_differences(plan: Plan, cluster_path: Path, profiles: Path) -> list[str]:
    """What the plan was made from and is not the same any more."""
    origin = plan.origin
    if origin is None:
        return []
    file, cluster = load_cluster(cluster_path)
    gone = [name for name in origin.devices if all(device.id != name for device in cluster.devices)]
    if gone:
        return [f"{', '.join(gone)} could take part when it was made and {'is' if len(gone) == 1 else 'are'} gone"]
    cluster = cluster.restricted_to(origin.devices)
    try:
        model = model_for_cluster(profiles, plan.model, file, cluster)
    except UsageError as error:
        return [error.message.rstrip(".")]
    problem = Problem(
        model=model, cluster=cluster, objective=plan.objective, batch=plan.batch, micro_batches=(plan.micro_batch,),
        optimizer=plan.optimizer, recompute=plan.recompute,
    )  # fmt: skip
    now = origin_of(problem)
    found: list[str] = []
    if now.model_sha256 != origin.model_sha256:
        found.append("the model's layers or times are not those it was made from")
    if now.cluster_sha256 != origin.cluster_sha256:
        found.append("the devices or links are not those it was made from")
    return found


def _figure_differences(plan: Plan, now: Estimate) -> list[str]:
    """Figures of the price that differ."""
    before = plan.estimate
    if before is None:
        return ["it holds no price"]
    found: list[str] = []
    for words, old, new in (
        ("a round takes", before.step_s, now.step_s),
        ("a sample takes", before.energy_j_per_sample, now.energy_j_per_sample),
    ):
        if abs(new - old) > _SAME * abs(old):
            dimension = "time" if words.startswith("a round") else "energy"
            texts = [format_quantity(value, dimension, digits=4) for value in (new, old)]
            found.append(f"{words} {texts[0]}, the plan says {texts[1]} ({new / old - 1:+.1%})")
    grown = [name for name, size in now.peak_bytes.items() if size != before.peak_bytes.get(name)]
    if grown:
        found.append(f"the memory of {', '.join(grown)} is not what the plan says")
    return found
