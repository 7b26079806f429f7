"""Stage, Plan, Estimate, Certificate: the decision, its price, and how good it provably is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import msgspec

from greentrain._checks import require, require_id, require_non_negative, require_positive
from greentrain.cluster import Cluster
from greentrain.errors import UsageError
from greentrain.objective import Objective, Optimizer, Parallelism, Problem
from greentrain.profile import LayerProfile, ModelProfile

__all__ = [
    "PLAN_SCHEMA",
    "Certificate",
    "Estimate",
    "Origin",
    "Plan",
    "Sharing",
    "Slice",
    "Stage",
    "allowed",
    "check_cluster",
    "check_model",
    "common_bytes",
    "in_flight_limit",
    "parallelism_name",
    "ring_bytes",
    "ring_part_bytes",
    "row_ranges",
    "shares_total",
    "slices",
    "time_optimal_path",
    "validate",
]

PLAN_SCHEMA = "greentrain.plan/1"

Sharing = Literal["samples", "tensor_sequence", "tensor", "sequence"]

# Activations of a layer that the rings of a group carry, forward and backward: two AllGathers and two
# ReduceScatters (or two AllReduces, which move as much), or the keys and values and back their gradients too.
_RINGS: dict[Sharing, tuple[int, int]] = {
    "samples": (0, 0), "tensor_sequence": (4, 4), "tensor": (4, 4), "sequence": (2, 4),
}  # fmt: skip


_GROUP_NAMES: dict[Sharing, Parallelism] = {
    "samples": "data", "tensor_sequence": "tensor+sequence", "tensor": "tensor", "sequence": "sequence",
}  # fmt: skip


class Stage(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A contiguous range of layers on a group of devices.

    Attributes:
        start: First layer.
        stop: One past the last layer.
        devices: The group, in the order of the shares.
        sharing: How the group shares the work of a micro-batch: its samples; the heads, columns and tokens of every
            sample (``tensor_sequence``); heads and columns only (``tensor``); tokens only (``sequence``).
        shares: Rows of each micro-batch per device, or its heads, or its tokens of every sample; each at least 1.
        points: Operating point of each device.
        in_flight: Micro-batches whose activations the stage holds at once (K of 1F1B).
        param_bytes: Trainable parameters of the range, so that a plan can be lowered by itself.
        output_bytes: Bytes per sample that leave towards the next stage; 0 for the last stage.
        gradient_bytes: Bytes per sample of the gradient that comes back; 0 for the last stage.
        ring_forward_bytes: Bytes per sample that the group's rings carry forward; a device sends (g−1)/g of them.
        ring_backward_bytes: The same backward. Both are 0 where samples are shared.
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
    ring_forward_bytes: int = 0
    ring_backward_bytes: int = 0

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
        require(self.sharing == "samples" or len(self.devices) > 1, f"one device cannot share {self.sharing!r}")
        require_non_negative(
            param_bytes=self.param_bytes,
            output_bytes=self.output_bytes,
            gradient_bytes=self.gradient_bytes,
            ring_forward_bytes=self.ring_forward_bytes,
            ring_backward_bytes=self.ring_backward_bytes,
        )

    @property
    def sum_bytes(self) -> int:
        """Gradient bytes that the group sums per round; 0 where each device has weights of its own.

        The few weights of a layer norm that tensor sharing replicates are left out.
        """
        return self.param_bytes if len(self.devices) > 1 and self.sharing in ("samples", "sequence") else 0

    def work_rows(self, position: int, micro_batch: int) -> float:
        """A device's part of a micro-batch in rows: its share of the rows, heads or tokens."""
        if self.sharing == "samples":
            return self.shares[position]
        return micro_batch * self.shares[position] / sum(self.shares)


class Estimate(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The price of a plan under the cost model (or of a simulated run of it).

    Attributes:
        step_s: Seconds of one round (one optimizer step).
        samples_per_s: Samples of a round over its time.
        energy_j_per_sample: Joules of a round over its samples.
        energy_j: Joules of a round by device and by cause. Participants: ``compute`` (busy watts), ``wait`` (idle
            watts at their operating point in the rest of the round), ``send`` and ``receive`` (per byte), ``wake``
            (once per job, spread over its rounds). Unused devices that count: ``sleep`` where they can, else ``idle``.
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


class Origin(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a plan was made from, so that another machine can tell whether it has the same.

    Attributes:
        model_sha256: Hash of the model's profile, with the layer times of the devices below.
        cluster_sha256: Hash of the cluster of these devices.
        devices: The devices that might take part.
        tool_version: Version of greentrain.
    """

    model_sha256: str
    cluster_sha256: str
    devices: tuple[str, ...]
    tool_version: str


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
        origin: What it was made from (None for a plan written by hand or by an older version).
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
    origin: Origin | None = None

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


class Slice(NamedTuple):
    """What a device holds of a micro-batch at a cut: rows, and of every row a part.

    Attributes:
        first_row: First row.
        last_row: One past the last row.
        first_part: First of ``parts_n`` equal parts of a row.
        last_part: One past the last part.
        parts_n: Parts of a row.
    """

    first_row: int
    last_row: int
    first_part: int
    last_part: int
    parts_n: int


def slices(sharing: Sharing, shares: Sequence[int], micro_batch: int, *, sends: bool) -> tuple[Slice, ...]:
    """What each device of a group hands over at a cut, or takes.

    Sample sharing splits the rows, token slices split every row. After an AllReduce (``tensor``) every device
    has everything: each sends an equal part, and each needs all.
    """
    if sharing == "samples":
        return tuple(Slice(first, last, 0, 1, 1) for first, last in row_ranges(shares))
    if sharing == "tensor":
        group_n = len(shares)
        return tuple(Slice(0, micro_batch, at, at + 1, group_n) if sends else Slice(0, micro_batch, 0, 1, 1)
                     for at in range(group_n))  # fmt: skip
    return tuple(Slice(0, micro_batch, first, last, sum(shares)) for first, last in row_ranges(shares))


def common_bytes(sent: Slice, taken: Slice, bytes_per_row: int) -> int:
    """Bytes that two slices have in common; the parts of a row add up to it exactly."""
    rows = min(sent.last_row, taken.last_row) - max(sent.first_row, taken.first_row)
    first = max(piece.first_part * bytes_per_row // piece.parts_n for piece in (sent, taken))
    last = min(piece.last_part * bytes_per_row // piece.parts_n for piece in (sent, taken))
    return max(rows, 0) * max(last - first, 0)


def ring_bytes(sharing: Sharing, layers: Sequence[LayerProfile]) -> tuple[int, int]:
    """Bytes per sample that a group's rings carry over these layers, forward and backward."""
    size = sum(layer.activation_bytes for layer in layers)
    forward_n, backward_n = _RINGS[sharing]
    return forward_n * size, backward_n * size


def ring_part_bytes(ring_bytes: int, rows: int, group_n: int) -> int:
    """Bytes that each device of a group sends (and receives) in one pass of a micro-batch: (g−1)/g of the rings."""
    return round(ring_bytes * rows * (group_n - 1) / group_n)


def shares_total(sharing: Sharing, layers: Sequence[LayerProfile], micro_batch: int) -> int:
    """What the shares of a stage over these layers add up to; 0 where they cannot be shared so."""
    if sharing == "samples":
        return micro_batch
    wholes = {layer.sequence if sharing == "sequence" else layer.heads for layer in layers}
    return wholes.pop() if len(wholes) == 1 else 0


def parallelism_name(plan: Plan) -> Parallelism:
    """single, data, tensor, sequence, tensor+sequence, pipeline or hybrid: the field's word for the plan."""
    groups = [len(stage.devices) for stage in plan.stages]
    if groups == [1]:
        return "single"
    if len(groups) == 1:
        return _GROUP_NAMES[plan.stages[0].sharing]
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


def allowed(plan: Plan, problem: Problem) -> bool:
    """Whether the plan lies in the part of the space that the problem asks for."""
    return problem.parallelism in ("any", parallelism_name(plan))


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
            *ring_bytes(stage.sharing, layers),
        )
        rings = (stage.ring_forward_bytes, stage.ring_backward_bytes)
        found = (stage.param_bytes, stage.output_bytes, stage.gradient_bytes, *rings)
        if found != expected:
            raise UsageError(
                f"plan: stage {index} states {found} parameter, output, gradient and ring bytes, "
                f"the model gives {expected}.",
                hint="Run greentrain schedule again for this model.",
            )
        whole = shares_total(stage.sharing, layers, plan.micro_batch)
        if sum(stage.shares) != whole:
            what = "tokens" if stage.sharing == "sequence" else "heads"
            raise UsageError(
                f"plan: stage {index} shares out {sum(stage.shares)} {what}, the model has {whole or 'none in common'} "
                f"in layers [{stage.start}, {stage.stop}).",
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
