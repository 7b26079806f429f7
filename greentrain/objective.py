"""Objective and Problem: what is to be minimised, for which model, on which cluster."""

from __future__ import annotations

from typing import Literal

import msgspec

from greentrain._checks import require, require_non_negative, require_positive
from greentrain.cluster import Cluster
from greentrain.profile import ModelProfile

__all__ = ["OPTIMIZER_STATES", "Objective", "ObjectiveKind", "Optimizer", "Parallelism", "Problem"]

ObjectiveKind = Literal["energy", "time", "edp", "carbon"]
Optimizer = Literal["sgd", "momentum", "adam"]
Parallelism = Literal["single", "data", "pipeline", "tensor", "sequence", "tensor+sequence", "hybrid"]

# Optimizer state in multiples of the weights (Asteroid, arXiv 2408.08015).
OPTIMIZER_STATES: dict[Optimizer, int] = {"sgd": 0, "momentum": 1, "adam": 2}


class Objective(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What to minimise, and within which limits.

    Attributes:
        minimise: energy (J per sample), time (s per sample), edp (their product) or carbon.
        deadline_s: The whole job must end within this time.
        job_samples: Samples of the whole job; needed for a deadline or an energy budget. With it waking is priced.
        budget_j: Energy that the whole job may take.
        max_slowdown: The plan may take at most this many times the round of the fastest plan that the planner
            knows (the exact planner knows the fastest of all).
        count_idle_of_unused: Whether devices that are on but unused count, with their sleep power where they can
            sleep, else with their idle power.
        power_cap_w: Most watts by device; operating points that draw more when busy are not allowed.
        device_budget_j: Energy that the whole job may take by device, such as a battery's.
    """

    minimise: ObjectiveKind = "energy"
    deadline_s: float | None = None
    job_samples: int | None = None
    budget_j: float | None = None
    max_slowdown: float | None = None
    count_idle_of_unused: bool = False
    power_cap_w: dict[str, float] = {}
    device_budget_j: dict[str, float] = {}

    def __post_init__(self) -> None:
        require_positive(deadline_s=self.deadline_s, job_samples=self.job_samples, budget_j=self.budget_j)
        for device, power_w in self.power_cap_w.items():
            require_positive(**{f"power_cap_w of {device!r}": power_w})
        for device, energy_j in self.device_budget_j.items():
            require_positive(**{f"device_budget_j of {device!r}": energy_j})
        require(self.max_slowdown is None or self.max_slowdown >= 1, "max_slowdown must be at least 1")
        needs_job = self.deadline_s is not None or self.budget_j is not None or self.device_budget_j
        require(not needs_job or self.job_samples is not None, "a deadline or a budget needs job_samples")
        require_non_negative(deadline_s=self.deadline_s)

    def value(self, *, energy_j_per_sample: float, s_per_sample: float) -> float:
        """The figure to minimise. Grid intensity is the same for every plan, so carbon follows energy."""
        if self.minimise == "time":
            return s_per_sample
        if self.minimise == "edp":
            return energy_j_per_sample * s_per_sample
        return energy_j_per_sample

    @property
    def unit(self) -> str:
        """Unit of :meth:`value`."""
        return {"energy": "J/sample", "time": "s/sample", "edp": "J·s/sample²", "carbon": "J/sample"}[self.minimise]


class Problem(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything a planner needs.

    Attributes:
        model: The profiled model with layer times for every device kind of the cluster.
        cluster: The devices that may take part.
        objective: What to minimise.
        batch: Samples per round (global batch of one optimizer step).
        micro_batches: Candidate micro-batch sizes; each divides the batch.
        optimizer: Decides the optimizer's memory.
        parallelism: Only plans of this name count (:func:`greentrain.plan.parallelism_name`); ``any`` of them.
        recompute: Activations inside layers are not kept but computed again in the backward pass.
    """

    model: ModelProfile
    cluster: Cluster
    objective: Objective
    batch: int
    micro_batches: tuple[int, ...]
    optimizer: Optimizer = "adam"
    parallelism: Parallelism | Literal["any"] = "any"
    recompute: bool = False

    def __post_init__(self) -> None:
        require_positive(batch=self.batch)
        require(len(self.micro_batches) > 0, "at least one micro-batch size is needed")
        for size in self.micro_batches:
            require(size >= 1 and self.batch % size == 0, f"micro-batch {size} does not divide the batch {self.batch}")
