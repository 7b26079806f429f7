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
from greentrain.sharing import (
    Piece,
    Ring,
    Sharing,
    cut_side_bytes,
    group_sum_bytes,
    is_split,
    pieces,
    ring_bytes,
    row_ranges,
    shares_total,
    stage_rings,
)

__all__ = [
    "PLAN_SCHEMA",
    "Certificate",
    "Cut",
    "Estimate",
    "Origin",
    "Plan",
    "Ring",
    "Sharing",
    "Stage",
    "StageBytes",
    "allowed",
    "check_cluster",
    "check_model",
    "cut",
    "in_flight_limit",
    "parallelism_name",
    "row_ranges",
    "shares_total",
    "stage_bytes",
    "time_optimal_path",
    "validate",
]

PLAN_SCHEMA = "greentrain.plan/1"

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
        ring_forward_bytes: Bytes per sample that the group's rings carry forward; its g devices together send (g−1)
            times as many.
        ring_backward_bytes: The same backward. Both are 0 where samples are shared.
        rings: The rings one by one, so that every device's bytes are known; none where samples are shared.
        group_sum_bytes: Gradient bytes that a group which shares work inside a sample sums per round.
        side_bytes: Part of ``output_bytes`` that belongs to other tensors than the hidden state (the first one); 0
            where both sides of the cut share samples, as are the next two.
        side_gradient_bytes: The same part of ``gradient_bytes``.
        output_tokens: Tokens of the hidden state that leaves; 0 = unknown.
        whole_start: The first layer is computed whole by every device of a group that shares work inside a sample.
        whole_stop: The last layer is.
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
    rings: tuple[Ring, ...] = ()
    group_sum_bytes: int = 0
    side_bytes: int = 0
    side_gradient_bytes: int = 0
    output_tokens: int = 0
    whole_start: bool = False
    whole_stop: bool = False

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
            group_sum_bytes=self.group_sum_bytes,
            side_bytes=self.side_bytes,
            side_gradient_bytes=self.side_gradient_bytes,
            output_tokens=self.output_tokens,
        )
        require(self.side_bytes <= self.output_bytes, "side_bytes must be a part of output_bytes")
        require(self.side_gradient_bytes <= self.gradient_bytes, "side_gradient_bytes must be a part of gradient_bytes")

    @property
    def sum_bytes(self) -> int:
        """Gradient bytes that the group sums per round; 0 where each device has weights of its own."""
        if self.sharing != "samples":
            return self.group_sum_bytes
        return self.param_bytes if len(self.devices) > 1 else 0

    def work_rows(self, position: int, micro_batch: int) -> float:
        """A device's part of a micro-batch in rows, in layers that are shared: its share of rows, heads or tokens."""
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
        recompute: Activations inside layers are not kept but computed again in the backward pass; only where all
            stages share samples.
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
    recompute: bool = False
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
            require(
                stage.sharing == "samples" or not self.recompute,
                f"stage {index} shares {stage.sharing!r}, only stages that share samples can recompute",
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


class StageBytes(NamedTuple):
    """What the model says of a stage; the fields of :class:`Stage` of the same names."""

    param_bytes: int
    output_bytes: int
    gradient_bytes: int
    ring_forward_bytes: int
    ring_backward_bytes: int
    rings: tuple[Ring, ...]
    group_sum_bytes: int
    side_bytes: int
    side_gradient_bytes: int
    output_tokens: int
    whole_start: bool
    whole_stop: bool


def stage_bytes(
    layers: Sequence[LayerProfile], start: int, stop: int, sharing: Sharing, after: Sharing | None
) -> StageBytes:
    """What a model says of a stage.

    Args:
        layers: The whole model.
        start: First layer of the stage.
        stop: One past the last.
        sharing: How its group shares it.
        after: How the next stage is shared; None for the last stage.
    """
    own, last = layers[start:stop], layers[stop - 1]
    rings, inside = stage_rings(sharing, layers, start, stop), sharing != "samples"
    side_bytes, side_gradient_bytes = cut_side_bytes(last, sharing, after) if after is not None else (0, 0)
    sliced = after is not None and not sharing == after == "samples"
    return StageBytes(
        param_bytes=sum(layer.param_bytes for layer in own),
        output_bytes=0 if after is None else last.activation_bytes,
        gradient_bytes=0 if after is None else last.gradient_bytes,
        ring_forward_bytes=ring_bytes(rings, "forward"),
        ring_backward_bytes=ring_bytes(rings, "backward"),
        rings=rings,
        group_sum_bytes=group_sum_bytes(sharing, own) if inside else 0,
        side_bytes=side_bytes,
        side_gradient_bytes=side_gradient_bytes,
        output_tokens=last.sequence if sliced else 0,
        whole_start=inside and not is_split(sharing, own[0]),
        whole_stop=inside and not is_split(sharing, last),
    )


class Cut(NamedTuple):
    """A micro-batch's way across a cut: what each sender holds, what each receiver needs, bytes per row of both.

    Attributes:
        sent: One per device of the sending stage.
        taken: One per device of the receiving stage.
        hidden_bytes: Bytes per row of the hidden state; of all tensors where both stages share samples.
        side_bytes: Bytes per row of the other tensors, one after another in the order of the block's outputs.
    """

    sent: tuple[Piece, ...]
    taken: tuple[Piece, ...]
    hidden_bytes: int
    side_bytes: int


def cut(before: Stage, after: Stage, micro_batch: int, *, forward: bool) -> Cut:
    """The cut between two neighbouring stages, for activations (``forward``) or for gradients."""
    tokens = before.output_tokens
    left = pieces(before.sharing, before.shares, micro_batch, sends=forward, whole=before.whole_stop, tokens=tokens)
    right = pieces(after.sharing, after.shares, micro_batch, sends=not forward, whole=after.whole_start, tokens=tokens)
    if forward:
        return Cut(left, right, before.output_bytes - before.side_bytes, before.side_bytes)
    return Cut(right, left, before.gradient_bytes - before.side_gradient_bytes, before.side_gradient_bytes)


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
        after = plan.stages[index + 1].sharing if index + 1 < len(plan.stages) else None
        expected = stage_bytes(model.layers, stage.start, stage.stop, stage.sharing, after)
        differing = [name for name in StageBytes._fields if getattr(stage, name) != getattr(expected, name)]
        if differing:
            found = ", ".join(f"{name} {getattr(stage, name)}" for name in differing)
            given = ", ".join(f"{getattr(expected, name)}" for name in differing)
            raise UsageError(
                f"plan: stage {index} states {found}, the model gives {given}.",
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
