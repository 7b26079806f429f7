"""Fine-tuning with parallel adapters, both phases planned together: which devices when, and whether a cache pays.

Epoch 1 runs the backbone under any plan; later epochs train the side network from the cache, sharing samples in one
stage. What couples the phases is the redistribution in between, the cache's room on its owners, and limits of the
whole job. So candidates of each phase are made (its time-energy frontier, every single device, every set of devices
with shares in proportion), every pair is priced, and the best kept; what the phases cost at least on their own bounds
every pair, which gives the certificate.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf
from typing import Literal

import msgspec

from greentrain._checks import require, require_positive
from greentrain.cost import CostTables
from greentrain.errors import InfeasibleError
from greentrain.objective import Objective, Problem
from greentrain.parallel.adapters import CacheShape, break_even_epochs, moved_s, redistribution
from greentrain.plan import Plan, row_ranges
from greentrain.planners import data, exact, single

__all__ = ["CacheRoom", "CachedPlan", "FinetunePlan", "PhaseCost", "job_cost", "plan_phases"]

FINETUNE_PLAN_SCHEMA = "greentrain.finetune_plan/1"

# Every set of so many devices is tried with proportional shares.
_SETS_OF = 8
_FRONTIER_S = 10.0


class CacheRoom(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is cached and what the places to keep it can do.

    Attributes:
        shape: What is cached of a sample.
        storage_bytes_per_s: At which a device's disk takes and gives records, with what it computes for them.
        disk_bytes: Most bytes on each device's disk; None: not known, so not limited.
        storage_source: Where the bandwidth comes from.
    """

    shape: CacheShape
    storage_bytes_per_s: float
    disk_bytes: int | None = None
    storage_source: str = "assumed"

    def __post_init__(self) -> None:
        require_positive(storage_bytes_per_s=self.storage_bytes_per_s, disk_bytes=self.disk_bytes)


class PhaseCost(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a whole fine-tuning job costs, modelled.

    Attributes:
        first_s: Seconds of epoch 1, with filling the cache.
        first_j: Joules of it.
        fill_s: Part of ``first_s`` that filling takes.
        fill_j: Part of ``first_j``.
        move_s: Seconds of the redistribution.
        move_j: Joules of it.
        move_bytes: Bytes of it.
        later_s: Seconds of each later epoch, with reading the cache.
        later_j: Joules of it.
        read_s: Part of ``later_s`` that reading takes.
        read_j: Part of ``later_j``.
        job_s: Seconds of all epochs.
        job_j: Joules of all epochs.
    """

    first_s: float
    first_j: float
    fill_s: float
    fill_j: float
    move_s: float
    move_j: float
    move_bytes: float
    later_s: float
    later_j: float
    read_s: float
    read_j: float
    job_s: float
    job_j: float


class CachedPlan(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The later epochs.

    Attributes:
        plan: Who trains, in which share.
        place: Where the cache lies on every owner.
        bytes_by_device: Mean bytes of the cache by owner.
    """

    plan: Plan
    place: Literal["memory", "disk"]
    bytes_by_device: dict[str, int]


class FinetunePlan(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Both phases of a fine-tuning job.

    Attributes:
        model: Name of the model.
        epochs: Epochs of the job.
        samples: Samples of an epoch.
        first: Plan of epoch 1, of all epochs without a cache.
        cached: Plan of the later epochs; None: a cache does not pay.
        cost: What the job costs.
        with_cache: The best job with a cache; None where none is possible.
        without_cache: The best job without.
        break_even_j: Fewest epochs from which the cache saves energy; None: never.
        break_even_s: Fewest epochs from which it saves time; None: never.
        room: What the cache was priced with.
        lower_bound: No job of the searched space has a smaller objective.
        gap_ratio: (objective − lower bound) / lower bound.
        considered_n: Pairs of plans that were priced.
        source: Where the watts come from.
    """

    model: str
    epochs: int
    samples: int
    first: Plan
    cached: CachedPlan | None
    cost: PhaseCost
    with_cache: PhaseCost | None
    without_cache: PhaseCost
    break_even_j: int | None
    break_even_s: int | None
    room: CacheRoom
    lower_bound: float
    gap_ratio: float
    considered_n: int
    source: Literal["modelled"] = "modelled"


@dataclass(frozen=True)
class _Pair:
    first: Plan
    cached: CachedPlan | None
    cost: PhaseCost


def plan_phases(
    first: Problem,
    later: Problem,
    room: CacheRoom,
    *,
    epochs: int,
    samples: int,
    time_limit_s: float = _FRONTIER_S,
) -> FinetunePlan:
    """The best job over both phases, with and without a cache.

    Args:
        first: The model with its backbone; its objective's limits hold for the whole job.
        later: The side network alone, on the same cluster, with the same batch.
        room: What is cached, and where it may lie.
        epochs: Passes over the data.
        samples: Samples of an epoch; whole batches are trained.
        time_limit_s: Seconds for the frontier of each phase.

    Raises:
        InfeasibleError: No pair of plans keeps the limits.
    """
    require(first.batch == later.batch, "both phases need the same batch")
    require(epochs >= 1, f"epochs is {epochs}, expected at least 1")
    objective = first.objective
    samples = samples // first.batch * first.batch
    require(samples > 0, "there are fewer samples than a batch")
    plans, first_j, first_s = _candidates(first, time_limit_s, shared_only=False)
    without = [_Pair(plan, None, job_cost(plan, None, first, room, epochs, samples)) for plan in plans]
    pairs: list[_Pair] = []
    # The bounds of the planners are of one sample.
    first_j, first_s = first_j * samples, first_s * samples
    bound = _value(objective, epochs * first_s, epochs * first_j)
    if epochs > 1:
        cached_plans, later_j, later_s = _candidates(later, time_limit_s, shared_only=True)
        later_j, later_s = later_j * samples, later_s * samples
        for begin, plan in itertools.product(plans, cached_plans):
            cached = _placed(plan, later, room, samples)
            if cached is not None:
                pairs.append(_Pair(begin, cached, job_cost(begin, cached, first, room, epochs, samples)))
        bound = min(bound, _value(objective, first_s + (epochs - 1) * later_s, first_j + (epochs - 1) * later_j))
    best_without = _best(without, objective)
    best_with = _best(pairs, objective)
    found = _best([pair for pair in (best_with, best_without) if pair is not None], objective)
    if found is None:
        raise _infeasible([*without, *pairs], objective)
    value = _value(objective, found.cost.job_s, found.cost.job_j)
    cached_pair = best_with or (min(pairs, key=lambda pair: _of(pair, objective)) if pairs else None)
    plain = best_without or min(without, key=lambda pair: _of(pair, objective))
    even_j, even_s = _break_even(cached_pair, plain)
    return FinetunePlan(
        model=first.model.model, epochs=epochs, samples=samples, first=found.first, cached=found.cached,
        cost=found.cost, with_cache=None if cached_pair is None else cached_pair.cost, without_cache=plain.cost,
        break_even_j=even_j, break_even_s=even_s, room=room, lower_bound=bound,
        gap_ratio=max(value / bound - 1, 0.0) if bound > 0 else 0.0, considered_n=len(pairs) + len(without),
    )  # fmt: skip


def job_cost(
    first: Plan, cached: CachedPlan | None, problem: Problem, room: CacheRoom, epochs: int, samples: int
) -> PhaseCost:
    """Price a job.

    Args:
        first: Plan of epoch 1, with its estimate.
        cached: The later epochs; None: they are as the first.
        problem: Of epoch 1; gives the cluster.
        room: Bandwidth of the storage, and what is cached.
        epochs: Passes over the data.
        samples: Samples of an epoch.
    """
    epoch_s, epoch_j = _epoch(first, samples)
    if cached is None:
        return PhaseCost(
            first_s=epoch_s, first_j=epoch_j, fill_s=0, fill_j=0, move_s=0, move_j=0, move_bytes=0, later_s=epoch_s,
            later_j=epoch_j, read_s=0, read_j=0, job_s=epochs * epoch_s, job_j=epochs * epoch_j,
        )  # fmt: skip
    fill_s, fill_j = _storing(first, problem, samples, room)
    later_s, later_j = _epoch(cached.plan, samples)
    # What lies in memory is filled through it as well, without a disk.
    read_s, read_j = (0.0, 0.0) if cached.place == "memory" else _storing(cached.plan, problem, samples, room)
    if cached.place == "memory":
        fill_s = fill_j = 0.0
    moves = redistribution(first, cached.plan, room.shape, samples)
    seconds = moved_s(moves, problem.cluster) if moves else 0.0
    joules = 0.0
    for move in moves:
        link = problem.cluster.link(move.src, move.dst)
        joules += move.size_bytes * (link.tx_j_per_byte + link.rx_j_per_byte)
    idle_w = {name: _watts(problem, name, point)[0] for plan in (first, cached.plan) for name, point in _points(plan)}
    joules += sum(idle_w.values()) * seconds
    return PhaseCost(
        first_s=epoch_s + fill_s, first_j=epoch_j + fill_j, fill_s=fill_s, fill_j=fill_j, move_s=seconds,
        move_j=joules, move_bytes=sum(move.size_bytes for move in moves), later_s=later_s + read_s,
        later_j=later_j + read_j, read_s=read_s, read_j=read_j,
        job_s=epoch_s + fill_s + seconds + (epochs - 1) * (later_s + read_s),
        job_j=epoch_j + fill_j + joules + (epochs - 1) * (later_j + read_j),
    )  # fmt: skip


def _epoch(plan: Plan, samples: int) -> tuple[float, float]:
    """Seconds and joules of an epoch."""
    assert plan.estimate is not None
    return samples / plan.batch * plan.estimate.step_s, samples * plan.estimate.energy_j_per_sample


def _points(plan: Plan) -> list[tuple[str, str]]:
    return [pair for stage in plan.stages for pair in zip(stage.devices, stage.points, strict=True)]


def _watts(problem: Problem, name: str, point: str) -> tuple[float, float]:
    """Idle and busy watts of a device at a point."""
    curve = problem.cluster.device(name).curve(point)
    return curve.idle_w, curve.busy_w


def _storing(plan: Plan, problem: Problem, samples: int, room: CacheRoom) -> tuple[float, float]:
    """Seconds and joules by which storage lengthens an epoch: every device its own part, all wait for the slowest."""
    seconds: dict[tuple[str, str], float] = {}
    for stage in plan.stages:
        whole = len(plan.stages) == 1
        size = room.shape.sample_bytes() if whole else room.shape.sample_bytes(stage.start, stage.stop)
        ranges = row_ranges(stage.shares)
        for name, point, (low, high) in zip(stage.devices, stage.points, ranges, strict=True):
            rows = samples * (high - low) / plan.micro_batch
            seconds[name, point] = rows * size / room.storage_bytes_per_s
    longest_s = max(seconds.values())
    joules = 0.0
    for (name, point), own_s in seconds.items():
        idle_w, busy_w = _watts(problem, name, point)
        joules += busy_w * own_s + idle_w * (longest_s - own_s)
    return longest_s, joules


def _placed(plan: Plan, problem: Problem, room: CacheRoom, samples: int) -> CachedPlan | None:
    """Where the cache lies: in memory where it fits every owner beside training, else on disk; None: nowhere."""
    assert plan.estimate is not None
    stage = plan.stages[0]
    sizes = {
        name: int(samples * share / plan.micro_batch * room.shape.sample_bytes())
        for name, share in zip(stage.devices, stage.shares, strict=True)
    }
    fits = all(
        plan.estimate.peak_bytes[name] + size <= problem.cluster.device(name).memory_bytes
        for name, size in sizes.items()
    )
    if fits:
        return CachedPlan(plan=plan, place="memory", bytes_by_device=sizes)
    if room.disk_bytes is not None and max(sizes.values()) > room.disk_bytes:
        return None
    return CachedPlan(plan=plan, place="disk", bytes_by_device=sizes)


def _candidates(problem: Problem, time_limit_s: float, *, shared_only: bool) -> tuple[list[Plan], float, float]:
    """Feasible plans of a phase, and the least joules and seconds of one sample that any plan could take.

    Args:
        problem: The phase; the job's limits are looked at later.
        time_limit_s: Seconds for its frontier.
        shared_only: Only plans of one stage that share samples.
    """
    objective = Objective(
        minimise="energy", count_idle_of_unused=problem.objective.count_idle_of_unused,
        power_cap_w=problem.objective.power_cap_w,
    )  # fmt: skip
    problem = msgspec.structs.replace(problem, objective=objective)
    found: list[Plan] = []
    least_j = least_s = inf
    kinds = ("single", "data") if shared_only else (problem.parallelism,)
    for kind in kinds:
        part = msgspec.structs.replace(problem, parallelism=kind)
        for minimise in ("energy", "time"):
            aim = msgspec.structs.replace(part, objective=msgspec.structs.replace(objective, minimise=minimise))
            plan = _tried(lambda aim=aim: exact.plan(aim, time_limit_s=time_limit_s / 4))
            if plan is None:
                continue
            found.append(plan)
            assert plan.certificate is not None
            bound = plan.certificate.lower_bound
            if bound is not None and minimise == "energy":
                least_j = min(least_j, bound)
            elif bound is not None:
                least_s = min(least_s, bound)
        found += _frontier(part, time_limit_s)
    tables = CostTables(problem)
    if problem.parallelism in ("any", "single") or shared_only:
        found += single.candidates(problem, tables)
    names = tuple(device.id for device in problem.cluster.devices)
    if problem.parallelism in ("any", "data") and len(names) <= _SETS_OF:
        for size in range(2, len(names) + 1):
            for group in itertools.combinations(names, size):
                part = msgspec.structs.replace(problem, cluster=problem.cluster.restricted_to(group))
                if not objective.count_idle_of_unused:
                    found += data.candidates(part, CostTables(part))
    feasible = [plan for plan in found if plan.estimate is not None and not plan.estimate.violations]
    if not feasible:
        raise InfeasibleError(
            f"no plan of {problem.model.model!r} fits the devices.",
            hint="Take a smaller --batch or --micro-batch, or more devices.",
        )
    return _distinct(feasible), least_j, least_s


def _frontier(problem: Problem, time_limit_s: float) -> list[Plan]:
    try:
        return list(exact.frontier(problem, time_limit_s=time_limit_s)[0])
    except InfeasibleError:
        return []


def _tried(make: Callable[[], Plan]) -> Plan | None:
    try:
        return make()
    except InfeasibleError:
        return None


def _distinct(plans: Sequence[Plan]) -> list[Plan]:
    seen: dict[tuple[object, ...], Plan] = {}
    for plan in plans:
        key = (
            plan.micro_batch,
            tuple((s.start, s.stop, s.devices, s.shares, s.points, s.sharing) for s in plan.stages),
        )
        seen.setdefault(key, plan)
    return list(seen.values())


def _value(objective: Objective, job_s: float, job_j: float) -> float:
    if objective.minimise == "time":
        return job_s
    return job_s * job_j if objective.minimise == "edp" else job_j


def _of(pair: _Pair, objective: Objective) -> float:
    return _value(objective, pair.cost.job_s, pair.cost.job_j)


def _best(pairs: Sequence[_Pair], objective: Objective) -> _Pair | None:
    kept = [
        pair
        for pair in pairs
        if (objective.deadline_s is None or pair.cost.job_s <= objective.deadline_s)
        and (objective.budget_j is None or pair.cost.job_j <= objective.budget_j)
    ]
    return min(kept, key=lambda pair: _of(pair, objective), default=None)


def _break_even(cached: _Pair | None, plain: _Pair) -> tuple[int | None, int | None]:
    if cached is None:
        return None, None
    cost, without = cached.cost, plain.cost
    return (
        break_even_epochs(
            once=cost.first_j + cost.move_j - without.first_j, uncached_epoch=without.first_j, cached_epoch=cost.later_j
        ),
        break_even_epochs(
            once=cost.first_s + cost.move_s - without.first_s, uncached_epoch=without.first_s, cached_epoch=cost.later_s
        ),
    )


def _infeasible(pairs: Sequence[_Pair], objective: Objective) -> InfeasibleError:
    fastest = min(pair.cost.job_s for pair in pairs)
    if objective.deadline_s is not None and fastest > objective.deadline_s:
        return InfeasibleError(
            f"the deadline of {objective.deadline_s:.4g} s is missed: the fastest job takes {fastest:.4g} s.",
            hint=f"Give it at least {fastest:.4g} s, fewer epochs, or more devices.",
        )
    least = min(pair.cost.job_j for pair in pairs)
    return InfeasibleError(
        f"no job keeps the deadline and the energy budget together; the thriftiest takes {least:.4g} J.",
        hint="Raise one of them, or take fewer epochs.",
    )
