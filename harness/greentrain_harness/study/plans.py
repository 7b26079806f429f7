"""The plan of a way to share work: all devices take part, the micro-batch size is the one that needs fewest joules."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import NamedTuple

from greentrain.cost import CostTables
from greentrain.objective import Parallelism, Problem
from greentrain.plan import Plan, Stage
from greentrain.profile import ModelProfile
from greentrain.sharing import is_split

__all__ = ["Chosen", "chosen", "lacking_bytes", "sole_param_bytes", "stages_text", "why_not"]

# Way -> planner whose candidates are taken.
_PLANNERS: dict[Parallelism, str] = {
    "single": "single", "data": "data", "sequence": "sequence", "tensor": "tensor",
    "tensor+sequence": "tensor_sequence", "pipeline": "pipeline", "hybrid": "asteroid",
}  # fmt: skip
_SHARED_INSIDE: tuple[Parallelism, ...] = ("sequence", "tensor", "tensor+sequence")


class Chosen(NamedTuple):
    """What a way to share work comes to.

    Attributes:
        plan: The feasible plan of the fewest joules per sample; None where none fits.
        nearest: Where none fits, the plan that lacks least memory; None where not even a plan was made.
    """

    plan: Plan | None
    nearest: Plan | None


def why_not(model: ModelProfile, way: Parallelism, devices_n: int) -> str | None:
    """Why the layers of a model cannot be shared so among so many devices; None where they can."""
    if way == "single":
        return None
    if devices_n < 2:
        return "one device has nobody to share with"
    if way == "pipeline" and len(model.layers) < devices_n:
        return f"{len(model.layers)} layers cannot be cut into {devices_n} stages"
    if way not in _SHARED_INSIDE:
        return None
    units_L = [layer.sequence if way == "sequence" else layer.heads for layer in model.layers if layer.heads]
    what = "tokens" if way == "sequence" else "heads"
    if not units_L:
        return f"the layers of {model.model} have no {what} to share"
    return f"{min(units_L)} {what} cannot be shared among {devices_n}" if min(units_L) < devices_n else None


def chosen(way: Parallelism, problem: Problem, tables: CostTables) -> Chosen:
    """The plan of a way over all devices of the problem (over the best one for ``single``).

    Args:
        way: How work is to be shared; the model can be (:func:`why_not`).
        problem: Model, cluster, batch.
        tables: Look-ups shared by all ways of the problem.
    """
    module = importlib.import_module(f"greentrain.planners.{_PLANNERS[way]}")
    wanted_n = 1 if way == "single" else len(problem.cluster.devices)
    found: list[Plan] = [plan for plan in module.candidates(problem, tables) if len(plan.devices) == wanted_n]
    feasible = [plan for plan in found if plan.estimate is not None and not plan.estimate.violations]
    if feasible:
        return Chosen(min(feasible, key=_joules), None)
    return Chosen(None, min(found, key=lambda plan: lacking_bytes(plan, problem), default=None))


def _joules(plan: Plan) -> float:
    assert plan.estimate is not None
    return plan.estimate.energy_j_per_sample


def lacking_bytes(plan: Plan, problem: Problem) -> int:
    """Bytes that the device that lacks most lacks."""
    assert plan.estimate is not None
    peaks = plan.estimate.peak_bytes
    return max(peak - problem.cluster.device(name).memory_bytes for name, peak in peaks.items())


def sole_param_bytes(plan: Plan, model: ModelProfile) -> int:
    """Largest part of the weights that one device holds alone: what is gone with it unless it was copied."""
    return max(_sole(stage, model) for stage in plan.stages)


def _sole(stage: Stage, model: ModelProfile) -> int:
    layers = model.layers[stage.start : stage.stop]
    if len(stage.devices) == 1:
        return sum(layer.param_bytes for layer in layers)
    if stage.sharing in ("samples", "sequence"):
        return 0
    split_bytes = sum(layer.param_bytes for layer in layers if is_split(stage.sharing, layer))
    return round(split_bytes * max(stage.shares) / sum(stage.shares))


def stages_text(stages: Sequence[Stage]) -> str:
    """First layer of each stage, and how many devices share it how: ``0 samples×3, 4 ×1``."""
    return ", ".join(
        f"{stage.start} ×1" if len(stage.devices) == 1 else f"{stage.start} {stage.sharing}×{len(stage.devices)}"
        for stage in stages
    )
