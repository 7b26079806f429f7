"""Profiles and plans of a fine-tuning task, for ``finetune`` and ``schedule --method parallel-adapters``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from greentrain.cli._cluster import load_cluster
from greentrain.cli._problem import make_problem, model_for_cluster
from greentrain.cluster import Cluster
from greentrain.cluster_file import ClusterFile
from greentrain.errors import UsageError
from greentrain.objective import Objective, Problem
from greentrain.parallel.adapters import CacheDtype, CacheShape
from greentrain.plan import Plan, Stage, in_flight_limit
from greentrain.profile import LayerTimes, ModelProfile

if TYPE_CHECKING:
    from greentrain.planners.two_phase import FinetunePlan
    from greentrain.workloads.adapters.task import AdapterTask
    from greentrain.workloads.workload import Workload

__all__ = ["ASSUMED_STORAGE", "cache_shape", "phase_problems", "plan_text", "runs_here", "single_plan"]

# A common SD card or eMMC of a board, with the time to pack and to check; --storage gives a measured one.
ASSUMED_STORAGE = "80MB"


def cache_shape(task: AdapterTask, tokens: float, dtype: CacheDtype, *, encrypted: bool) -> CacheShape:
    """What is cached of a sample of a task.

    Args:
        task: The task.
        tokens: Mean tokens of a text.
        dtype: How outputs are kept.
        encrypted: Whether records are encrypted.
    """
    import torch

    from greentrain.workloads.adapters.pairs import cached_entries
    from greentrain.workloads.adapters.task import task_blocks

    with torch.device("meta"):
        entries = cached_entries(task_blocks(task, 0, skeleton=True))
    return CacheShape(
        layers=tuple(entry.block for entry in entries), widths=tuple(entry.width for entry in entries),
        tokens=tuple(1.0 if entry.decoder else tokens for entry in entries), dtype=dtype, encrypted=encrypted,
    )  # fmt: skip


def phase_problems(
    task: AdapterTask, cluster_path: Path, profiles: Path, objective: Objective, devices: tuple[str, ...]
) -> tuple[ClusterFile, Problem, Problem | None]:
    """The problems of both phases; the later one only for parallel adapters.

    Layer times are those of the profiles ``MODEL.adapters`` and ``MODEL.adapters-cached`` (of another method
    ``MODEL.METHOD``), scaled to the task's tokens.

    Raises:
        UsageError: A device was never timed with them.
    """
    from greentrain.workloads.adapters.named import workload_name
    from greentrain.workloads.adapters.task import cached_workload, task_workload

    file, cluster = load_cluster(cluster_path)
    cluster = cluster.restricted_to(devices or tuple(device.id for device in cluster.devices))
    name = workload_name(task.model, task.method)
    first = _problem(task, task_workload(task, name), name, profiles, file, cluster, objective)
    if task.method != "parallel-adapters":
        return file, first, None
    later_name = workload_name(task.model, task.method, cached=True)
    later = cached_workload(task, later_name)
    return file, first, _problem(task, later, later_name, profiles, file, cluster, objective)


def _problem(
    task: AdapterTask, workload: Workload, name: str, profiles: Path, file: ClusterFile, cluster: Cluster,
    objective: Objective,
) -> Problem:  # fmt: skip
    from greentrain.workloads.adapters.named import NAMED_TOKENS_N
    from greentrain_harness.profilers.layers import profile_model

    known = model_for_cluster(profiles, name, file, cluster)
    profile: ModelProfile = profile_model(workload)
    if len(profile.layers) != len(known.layers):
        raise UsageError(
            f"{profiles}: the profile of {name!r} has {len(known.layers)} blocks, the model {len(profile.layers)}.",
            hint=f"Run again on every device: greentrain measure --model {name}",
        )
    factor = task.tokens_n / NAMED_TOKENS_N
    # Workers of fine-tuning share samples, not heads.
    layers = tuple(msgspec.structs.replace(layer, heads=0) for layer in profile.layers)
    profile = msgspec.structs.replace(profile, layers=layers)
    profile = profile.with_times([_scaled(times, factor) for times in known.times])
    sizes = tuple(size for size in task.micro_batches if task.batch % size == 0) or (task.batch,)
    return make_problem(
        profile, cluster, objective, batch=task.batch, micro_batches=sizes, optimizer=workload.optimizer
    )


def _scaled(times: LayerTimes, factor: float) -> LayerTimes:
    """Times of another number of tokens, in proportion."""
    if factor == 1:
        return times
    return msgspec.structs.replace(
        times,
        forward_s_LB=tuple(tuple(value * factor for value in row) for row in times.forward_s_LB),
        backward_s_LB=tuple(tuple(value * factor for value in row) for row in times.backward_s_LB),
        provenance=msgspec.structs.replace(
            times.provenance, source="modelled", note=f"{times.provenance.note}; scaled by {factor:.3g} to other tokens"
        ),
    )


def single_plan(task: AdapterTask, workload: Workload, device: str) -> Plan:
    """One device trains alone: no search, no price."""
    from greentrain.workloads.workload import block_outputs, structure_sha256

    blocks = workload.build(0)
    outputs_L = block_outputs(blocks, workload.example(1)[0])
    micro_batch = min(task.batch, 16)
    while task.batch % micro_batch:
        micro_batch -= 1
    stage = Stage(
        start=0, stop=len(blocks), devices=(device,), sharing="samples", shares=(micro_batch,), points=("current",),
        in_flight=in_flight_limit(1, 0, task.batch // micro_batch),
        param_bytes=sum(p.nbytes for block in blocks for p in block.parameters() if p.requires_grad),
        output_bytes=0, gradient_bytes=0,
    )  # fmt: skip
    return Plan(
        model=workload.name, structure_sha256=structure_sha256(blocks, outputs_L), cluster="this machine",
        planner="single", objective=Objective(), batch=task.batch, micro_batch=micro_batch,
        optimizer=workload.optimizer, stages=(stage,),
    )  # fmt: skip


def runs_here(plan: Plan) -> str:
    """Who does what, in a line."""
    parts = [
        f"blocks {stage.start}-{stage.stop - 1} on "
        + ", ".join(f"{name} ({share} of {plan.micro_batch} rows, {point})"
                    for name, share, point in zip(stage.devices, stage.shares, stage.points, strict=True))
        for stage in plan.stages
    ]  # fmt: skip
    return "; ".join(parts)


def plan_text(found: FinetunePlan) -> str:
    """Both phases, what they cost, and whether the cache pays; all of it modelled."""
    from greentrain.units import format_quantity

    cost, plain = found.cost, found.without_cache
    lines = [
        f"{found.model}: {found.epochs} epochs of {found.samples} samples, modelled:",
        f"  epoch 1      {runs_here(found.first)}: {format_quantity(cost.first_s, 'time')}, "
        f"{format_quantity(cost.first_j, 'energy')}",
    ]
    if found.cached is not None:
        size = sum(found.cached.bytes_by_device.values())
        lines += [
            f"  cache        {format_quantity(size, 'bytes')} as {found.room.shape.dtype} in {found.cached.place}; "
            f"filling {format_quantity(cost.fill_j, 'energy')}, redistribution of "
            f"{format_quantity(cost.move_bytes, 'bytes')}: {format_quantity(cost.move_s, 'time')}, "
            f"{format_quantity(cost.move_j, 'energy')}",
            f"  later epochs {runs_here(found.cached.plan)}: {format_quantity(cost.later_s, 'time')}, "
            f"{format_quantity(cost.later_j, 'energy')} each",
        ]
    else:
        lines.append("  cache        none: it does not pay" + ("" if found.with_cache else " (it fits nowhere)"))
    lines.append(
        f"  whole job    {format_quantity(cost.job_s, 'time')}, {format_quantity(cost.job_j, 'energy')}; without a "
        f"cache {format_quantity(plain.job_s, 'time')}, {format_quantity(plain.job_j, 'energy')}"
    )
    even = [
        f"{what} from {epochs} epochs" if epochs is not None else f"never {what}"
        for what, epochs in (("energy", found.break_even_j), ("time", found.break_even_s))
    ]
    lines.append(f"  a cache saves {', '.join(even)}; at most {found.gap_ratio:.2%} above the least possible")
    lines.append(
        f"  storage      {format_quantity(found.room.storage_bytes_per_s, 'bytes')}/s ({found.room.storage_source})"
    )
    return "\n".join(lines)
