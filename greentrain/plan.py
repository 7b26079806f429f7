"""Stage, Plan, Estimate, Certificate: the decision, its price, and how good it provably is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import msgspec

from greentrain._checks import require, require_id, require_non_negative, require_positive
from greentrain.cluster import Cluster
from greentrain.errors import UsageError
from greentrain.objective import Objective, Optimizer, Problem
from greentrain.profile import ModelProfile

__all__ = [
    "PLAN_SCHEMA",
    "Certificate",
    "Estimate",
    "Plan",
    "Sharing",
    "Stage",
    "check_cluster",
    "check_model",
    "in_flight_limit",
    "parallelism_name",
    "row_ranges",
    "time_optimal_path",
    "validate",
]

PLAN_SCHEMA = "greentrain.plan/1"

Sharing = Literal["samples", "tensor_sequence"]


class Stage(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A contiguous range of layers on a group of devices.

    Attributes:
        start: First layer.
        stop: One past the last layer.
        devices: The group, in the order of the shares.
        sharing: How the group shares the work of a micro-batch.
        shares: Rows of each micro-batch per device; each at least 1, their sum is the micro-batch size.
        points: Operating point of each device.
        in_flight: Micro-batches whose activations the stage holds at once (K of 1F1B).
        param_bytes: Trainable parameters of the range, so that a plan can be lowered by itself.
        output_bytes: Bytes per sample that leave towards the next stage; 0 for the last stage.
        gradient_bytes: Bytes per sample of the gradient that comes back; 0 for the last stage.
    """

    start: int
    stop: int
    devices: tuple[str, ...]
    sharing: Sharing
    shares: tuple[int, ...]
    points: tuple[str, ...]
    in_flight: int
    param_bytes: int
    output_bytes: int
    gradient_bytes: int

    def __post_init__(self) -> None:
        require(0 <= self.start < self.stop, f"layers [{self.start}, {self.stop}) are empty")
        require(len(self.devices) > 0, "a stage needs at least one device")
        require(
            len(self.devices) == len(self.shares) == len(self.points),
            f"{len(self.devices)} devices, {len(self.shares)} shares and {len(self.points)} points must be as many",
        )
        for device in self.devices:
            require_id(device, what="device id")
        require(all(share >= 1 for share in self.shares), f"shares {self.shares} must be at least 1 each")
        require(self.in_flight >= 1, "in_flight must be at least 1")
        require_non_negative(
            param_bytes=self.param_bytes, output_bytes=self.output_bytes, gradient_bytes=self.gradient_bytes
        )


class Estimate(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The price of a plan under the cost model (or of a simulated run of it).

    Attributes:
        step_s: Seconds of one round (one optimizer step).
        samples_per_s: Samples of a round over its time.
        energy_j_per_sample: Joules of a round over its samples.
        energy_j: Joules of a round by device and by cause (compute, send, receive, wait, idle).
        busy_s: Seconds of a round in which each device computes.
        peak_bytes: Peak training memory by device.
        violations: What breaks a limit, in words; empty for a feasible plan.
        method: ``formula`` or ``simulator``.
        source: Where the watts come from; an estimate is always modelled.
    """

    step_s: float
    samples_per_s: float
    energy_j_per_sample: float
    energy_j: dict[str, dict[str, float]]
    busy_s: dict[str, float]
    peak_bytes: dict[str, int]
    violations: tuple[str, ...] = ()
    method: Literal["formula", "simulator"] = "formula"
    source: Literal["modelled"] = "modelled"

    @property
    def round_energy_j(self) -> float:
        """Joules of one round over all devices and causes."""
        return sum(sum(causes.values()) for causes in self.energy_j.values())


class Certificate(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How good a plan provably is under the cost model.

    Attributes:
        lower_bound: No plan of the searched space has a smaller objective (None = no bound known).
        gap_ratio: (objective − lower bound) / lower bound; 0 means proven optimal (None = no bound known).
        method: How it was proved.
        unit: Unit of the bound.
        considered_n: Plans that were priced.
    """

    lower_bound: float | None
    gap_ratio: float | None
    method: str
    unit: str
    considered_n: int


class Plan(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Who computes what, in which share, at which operating point.

    Attributes:
        model: Name of the workload.
        structure_sha256: Hash of the model's blocks; a worker with another model refuses the plan.
        cluster: Name of the cluster.
        planner: Name of the method that made the plan.
        objective: What was minimised.
        batch: Samples per round.
        micro_batch: Samples per micro-batch.
        optimizer: The optimizer priced in memory.
        stages: In pipeline order; a device is in at most one stage.
        schedule: Order of the micro-batches.
        estimate: The price (None before pricing).
        certificate: The proof (None for a plan written by hand).
        reasons: Why each device is in or out, in words.
    """

    model: str
    structure_sha256: str
    cluster: str
    planner: str
    objective: Objective
    batch: int
    micro_batch: int
    optimizer: Optimizer
    stages: tuple[Stage, ...]
    schedule: Literal["1f1b"] = "1f1b"
    estimate: Estimate | None = None
    certificate: Certificate | None = None
    reasons: dict[str, str] = {}

    def __post_init__(self) -> None:
        require_positive(batch=self.batch, micro_batch=self.micro_batch)
        require(self.batch % self.micro_batch == 0, f"micro-batch {self.micro_batch} does not divide {self.batch}")
        require(len(self.stages) > 0, "a plan needs at least one stage")
        expected = 0
        used: set[str] = set()
        for index, stage in enumerate(self.stages):
            require(stage.start == expected, f"stage {index} starts at layer {stage.start}, expected {expected}")
            require(
                stage.sharing != "samples" or sum(stage.shares) == self.micro_batch,
                f"stage {index}: shares {stage.shares} do not add up to the micro-batch {self.micro_batch}",
            )
            twice = used & set(stage.devices)
            require(not twice and len(set(stage.devices)) == len(stage.devices), f"device used twice in stage {index}")
            used |= set(stage.devices)
            expected = stage.stop

    @property
    def micro_batches_n(self) -> int:
        """Micro-batches per round (M)."""
        return self.batch // self.micro_batch

    @property
    def devices(self) -> tuple[str, ...]:
        """The participants in pipeline order; the position is the rank."""
        return tuple(device for stage in self.stages for device in stage.devices)


def in_flight_limit(stages_n: int, stage: int, micro_batches_n: int) -> int:
    """K of 1F1B when communication is a step of its own: ``2(P−p)−1``, at most M (Asteroid)."""
    return min(2 * (stages_n - stage) - 1, micro_batches_n)


def row_ranges(shares: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """Half-open row range of each device inside a micro-batch."""
    ranges: list[tuple[int, int]] = []
    start = 0
    for share in shares:
        ranges.append((start, start + share))
        start += share
    return tuple(ranges)


def parallelism_name(plan: Plan) -> str:
    """single, data, pipeline, or hybrid: the point of the space in the field's words."""
    groups = [len(stage.devices) for stage in plan.stages]
    shared = {stage.sharing for stage in plan.stages if len(stage.devices) > 1}
    if groups == [1]:
        return "single"
    if len(groups) == 1:
        return "tensor+sequence" if "tensor_sequence" in shared else "data"
    return "pipeline" if max(groups) == 1 else "hybrid"


def time_optimal_path(plan: Path) -> Path:
    """Where the time-optimal plan lies beside a plan: ``plan.json`` → ``plan.time-optimal.json``."""
    return plan.with_name(f"{plan.stem}.time-optimal.json")


def validate(plan: Plan, problem: Problem) -> None:
    """Check that a plan belongs to a problem.

    Raises:
        UsageError: Another model, an unknown device or point, layers missing, or wrong byte counts.
    """
    check_model(plan, problem.model)
    check_cluster(plan, problem.cluster)
    if plan.batch != problem.batch:
        raise UsageError(f"plan: batch is {plan.batch}, the problem has {problem.batch}.", hint="Schedule again.")


def check_model(plan: Plan, model: ModelProfile) -> None:
    """The plan's layers, hash and byte counts are those of the model.

    Raises:
        UsageError: They are not.
    """
    if plan.model != model.model or plan.structure_sha256 != model.structure_sha256:
        raise UsageError(
            f"plan: made for model {plan.model!r} ({plan.structure_sha256[:12]}), "
            f"got {model.model!r} ({model.structure_sha256[:12]}).",
            hint="Run greentrain schedule again for this model.",
        )
    if plan.stages[-1].stop != len(model.layers):
        raise UsageError(
            f"plan: stages end at layer {plan.stages[-1].stop}, model {model.model!r} has {len(model.layers)} layers.",
            hint="Run greentrain schedule again for this model.",
        )
    for index, stage in enumerate(plan.stages):
        layers = model.layers[stage.start : stage.stop]
        last = index == len(plan.stages) - 1
        expected = (
            sum(layer.param_bytes for layer in layers),
            0 if last else layers[-1].activation_bytes,
            0 if last else layers[-1].gradient_bytes,
        )
        found = (stage.param_bytes, stage.output_bytes, stage.gradient_bytes)
        if found != expected:
            raise UsageError(
                f"plan: stage {index} states {found} parameter, output and gradient bytes, the model gives {expected}.",
                hint="Run greentrain schedule again for this model.",
            )


def check_cluster(plan: Plan, cluster: Cluster) -> None:
    """Every device and operating point of the plan exists in the cluster.

    Raises:
        UsageError: One does not.
    """
    for index, stage in enumerate(plan.stages):
        for device, point in zip(stage.devices, stage.points, strict=True):
            try:
                cluster.device(device).curve(point)
            except UsageError as error:
                raise UsageError(f"plan: stage {index}: {error.message}", hint=error.hint) from error
