"""The simulated part: one round of each plan on catalogue boards. Layer times and watts are modelled, and say so."""

from __future__ import annotations

import msgspec

from greentrain.cluster import Cluster, Link, Medium
from greentrain.cluster_file import ASSUMED_LATENCY
from greentrain.cost import CostTables, stage_traffic
from greentrain.device import Device
from greentrain.objective import Objective, Problem
from greentrain.plan import Estimate, Plan, parallelism_name
from greentrain.profile import ModelProfile
from greentrain.simulator import simulate, to_estimate
from greentrain.study import StudyCase, StudyRow
from greentrain.units import parse_quantity
from greentrain_datasets.catalogue import catalogue_device, modelled_layer_times
from greentrain_harness.study.grid import BOARDS
from greentrain_harness.study.plans import chosen, lacking_bytes, sole_param_bytes, stages_text, why_not

__all__ = ["BoardStudy", "outcome_fields", "problem_of"]

_BYTES_PER_MBIT = 1e6 / 8
_MIB = 2**20
# Rate inside a room where two rooms are joined by a slower line.
INSIDE_ROOM_MBIT_PER_S = 1000.0
_MICRO_BATCHES = (2, 4, 8, 16, 32)
# No round of more micro-batches than this is looked at: filling the pipeline is then nothing any more.
_MOST_MICRO_BATCHES = 64
_WAITING = ("wait", "idle", "sleep")


class BoardStudy:
    """Simulates cases; what cases of one problem share is made once.

    Args:
        models: Profiles by name; their own layer times are not used.
    """

    def __init__(self, models: dict[str, ModelProfile]) -> None:
        self._models = models
        self._key: StudyCase | None = None
        self._tables: CostTables | None = None

    def row(self, case: StudyCase) -> StudyRow:
        """One case, simulated."""
        reason = why_not(self._models[case.model], case.way, case.devices_n)
        if reason is not None:
            return _row(case, status="impossible", note=reason)
        tables = self._tables_of(case)
        problem = tables.problem
        plan, nearest = chosen(case.way, problem, tables)
        if plan is None:
            if nearest is None or nearest.estimate is None:
                return _row(case, status="out-of-memory", note="no plan of this form fits the devices")
            return _row(
                case, status="out-of-memory", stages=stages_text(nearest.stages), micro_batch=nearest.micro_batch,
                parallelism=parallelism_name(nearest), participants_n=len(nearest.devices),
                peak_memory_bytes=max(nearest.estimate.peak_bytes.values()),
                lacking_bytes=lacking_bytes(nearest, problem), note=nearest.estimate.violations[0],
            )  # fmt: skip
        price = to_estimate(simulate(plan, problem), plan, problem)
        return _row(
            case, status="ok", time_source="simulated", energy_source="modelled",
            **outcome_fields(plan, price, problem),
        )  # fmt: skip

    def _tables_of(self, case: StudyCase) -> CostTables:
        key = msgspec.structs.replace(case, way="single")
        if self._tables is None or key != self._key:
            self._tables = CostTables(problem_of(case, self._models[case.model]))
            self._key = key
        return self._tables


def _row(case: StudyCase, **figures: object) -> StudyRow:
    return msgspec.convert({**msgspec.structs.asdict(case), **figures}, type=StudyRow)


def outcome_fields(plan: Plan, price: Estimate, problem: Problem) -> dict[str, object]:
    """The figures of a row that come from a priced plan."""
    round_j = price.round_energy_j
    waiting_j = sum(causes.get(cause, 0.0) for causes in price.energy_j.values() for cause in _WAITING)
    sent = sum(
        traffic.sent_bytes
        for index in range(len(plan.stages))
        for traffic in stage_traffic(plan, index, problem.cluster)
    )
    return {
        "parallelism": parallelism_name(plan),
        "participants_n": len(plan.devices),
        "micro_batch": plan.micro_batch,
        "stages": stages_text(plan.stages),
        "step_s": price.step_s,
        "samples_per_s": price.samples_per_s,
        "energy_j_per_sample": price.energy_j_per_sample,
        "mean_power_w": round_j / price.step_s,
        "sent_bytes_per_sample": sent / plan.batch,
        "peak_memory_bytes": max(price.peak_bytes.values()),
        "idle_time_ratio": max(1 - sum(price.busy_s.values()) / (len(plan.devices) * price.step_s), 0.0),
        "idle_energy_ratio": waiting_j / round_j,
        "sole_param_bytes": sole_param_bytes(plan, problem.model),
    }


def problem_of(case: StudyCase, model: ModelProfile) -> Problem:
    """The cluster of a simulated case, with modelled layer times."""
    devices = tuple(
        _device(kind, f"{kind}-{index}", case) for index, kind in enumerate(BOARDS[case.boards][: case.devices_n])
    )
    pairs = dict.fromkeys((device.kind, device.points[0].name) for device in devices)
    return Problem(
        model=model.with_times(modelled_layer_times(model, kind, point) for kind, point in pairs),
        cluster=_cluster(case, devices),
        objective=Objective(minimise="energy"),
        batch=case.batch,
        micro_batches=tuple(
            size for size in _MICRO_BATCHES if case.batch % size == 0 and case.batch // size <= _MOST_MICRO_BATCHES
        ),
    )


def _device(kind: str, identity: str, case: StudyCase) -> Device:
    device = catalogue_device(kind, identity)
    memory_bytes = device.memory_bytes
    if case.memory_limit_mib is not None:
        memory_bytes = min(memory_bytes, round(case.memory_limit_mib * _MIB))
    point = device.points[0 if case.mode == "default" else -1]
    return msgspec.structs.replace(device, points=(point,), memory_bytes=memory_bytes)


def _cluster(case: StudyCase, devices: tuple[Device, ...]) -> Cluster:
    rate = case.bandwidth_mbit_per_s * _BYTES_PER_MBIT
    latency_s = parse_quantity(ASSUMED_LATENCY, "time", where="latency")
    shared = case.network == "shared"
    links: list[Link] = []
    if case.network == "rooms":
        half = len(devices) // 2
        links = [
            Link(
                src=a.id, dst=b.id, bandwidth_bytes_per_s=INSIDE_ROOM_MBIT_PER_S * _BYTES_PER_MBIT, latency_s=latency_s
            )
            for room in (devices[:half], devices[half:])
            for a in room
            for b in room
            if a is not b
        ]
    return Cluster(
        name=case.boards,
        devices=devices,
        default_link=Link(
            src="*", dst="*", bandwidth_bytes_per_s=rate, latency_s=latency_s, medium="air" if shared else None
        ),
        links=tuple(links),
        media=(Medium(name="air", bandwidth_bytes_per_s=rate),) if shared else (),
    )
