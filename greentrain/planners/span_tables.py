"""Seconds, watts and memory of every span of layers, for one micro-batch size: looked up by the exact search.

Axis legend: S spans [start, stop) of layers, P slots (a device type at one of its operating points),
T device types, R share units of the micro-batch (0 … units; entry 0 is never used).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import msgspec
import numpy as np

from greentrain.cost import CostTables, most_rows
from greentrain.objective import Problem
from greentrain.planners.device_types import DeviceTypes

__all__ = ["SpanTables", "most_units_TS", "share_step", "span_tables"]

# A micro-batch is shared out in at most this many units, so that large ones stay searchable.
_MOST_UNITS = 32
_PER_SLOT = ("type_P", "forward_s_PSR", "backward_s_PSR", "update_s_PS", "rise_w_P", "wait_w_P")


@dataclass(frozen=True, kw_only=True)
class SpanTables:
    """Everything that the search asks about a span of layers.

    Attributes:
        micro_batch: Rows of a micro-batch.
        step: Rows per share unit.
        micro_batches_n: Micro-batches per round (M).
        start_S: First layer of each span.
        stop_S: One past the last layer.
        span_LL: Number of the span [start, stop), shape (L + 1, L + 1); −1 where there is none.
        param_bytes_S: Trainable bytes.
        type_P: Device type of each slot.
        point_P: Name of its operating point.
        forward_s_PSR: Forward seconds per micro-batch.
        backward_s_PSR: Backward seconds per micro-batch.
        update_s_PS: Optimizer seconds per round.
        rise_w_P: Busy watts above waiting watts.
        wait_w_P: Waiting watts, above those of the device when it is on but unused and that counts.
    """

    micro_batch: int
    step: int
    micro_batches_n: int
    start_S: np.ndarray
    stop_S: np.ndarray
    span_LL: np.ndarray
    param_bytes_S: np.ndarray
    type_P: np.ndarray
    point_P: tuple[str, ...]
    forward_s_PSR: np.ndarray
    backward_s_PSR: np.ndarray
    update_s_PS: np.ndarray
    rise_w_P: np.ndarray
    wait_w_P: np.ndarray

    @property
    def units(self) -> int:
        """Share units of a micro-batch."""
        return self.micro_batch // self.step

    def slots(self, keep: list[int]) -> SpanTables:
        """The same tables with some of the slots."""
        return replace(
            self,
            point_P=tuple(self.point_P[slot] for slot in keep),
            **{name: getattr(self, name)[keep] for name in _PER_SLOT},
        )

    def slots_of(self, device_type: int) -> list[int]:
        """The slots of a device type: one per allowed operating point."""
        return [slot for slot, owner in enumerate(self.type_P) if owner == device_type]


def share_step(micro_batch: int) -> int:
    """Rows per share unit: 1 for small micro-batches, else the least divisor that leaves few enough units."""
    return next(
        step for step in range(1, micro_batch + 1) if micro_batch % step == 0 and micro_batch // step <= _MOST_UNITS
    )


def span_tables(
    problem: Problem, types: DeviceTypes, micro_batch: int, tables: CostTables, *, by_energy: bool = True
) -> SpanTables:
    """Tabulate a problem for one micro-batch size.

    Args:
        problem: Model, cluster and objective.
        types: Its device types.
        micro_batch: Rows of a micro-batch.
        tables: Layer times.
        by_energy: Whether joules matter; if not, only the fastest operating points are kept.
    """
    layers = len(problem.model.layers)
    spans = [(start, stop) for start in range(layers) for stop in range(start + 1, layers + 1)]
    start_S = np.array([start for start, _ in spans])
    stop_S = np.array([stop for _, stop in spans])
    span_LL = np.full((layers + 1, layers + 1), -1, dtype=np.int32)
    span_LL[start_S, stop_S] = np.arange(len(spans))
    step = share_step(micro_batch)
    slots = [(index, point.name) for index, device in enumerate(types.device_T) for point in device.points]
    forward_s_PSR = np.zeros((len(slots), len(spans), micro_batch // step + 1))
    backward_s_PSR = np.zeros_like(forward_s_PSR)
    update_s_PS = np.zeros((len(slots), len(spans)))
    for number, (index, point) in enumerate(slots):
        device = types.device_T[index]
        for unit in range(1, micro_batch // step + 1):
            prefix_s_L2 = np.array(
                [tables.compute_s(device, point, 0, stop, unit * step) for stop in range(layers + 1)]
            )
            own_s_S2 = prefix_s_L2[stop_S] - prefix_s_L2[start_S]
            forward_s_PSR[number, :, unit], backward_s_PSR[number, :, unit] = own_s_S2[:, 0], own_s_S2[:, 1]
        update_s_L = np.array([tables.update_s(device, point, 0, stop) for stop in range(layers + 1)])
        update_s_PS[number] = update_s_L[stop_S] - update_s_L[start_S]
    # A device in use no longer counts as an idle one.
    counted = problem.objective.count_idle_of_unused
    unused_w_P = np.array([types.device_T[index].power.idle_w * counted for index, _ in slots])
    curves = [types.device_T[index].curve(point) for index, point in slots]
    params_L = np.cumsum([0, *(layer.param_bytes for layer in problem.model.layers)])
    found = SpanTables(
        micro_batch=micro_batch,
        step=step,
        micro_batches_n=problem.batch // micro_batch,
        start_S=start_S,
        stop_S=stop_S,
        span_LL=span_LL,
        param_bytes_S=params_L[stop_S] - params_L[start_S],
        type_P=np.array([index for index, _ in slots], dtype=np.int32),
        point_P=tuple(point for _, point in slots),
        forward_s_PSR=forward_s_PSR,
        backward_s_PSR=backward_s_PSR,
        update_s_PS=update_s_PS,
        rise_w_P=np.array([curve.busy_w - curve.idle_w for curve in curves]),
        wait_w_P=np.array([curve.idle_w for curve in curves]) - unused_w_P,
    )
    return found.slots(_useful_slots(found, by_energy=by_energy))


def _useful_slots(spans: SpanTables, *, by_energy: bool) -> list[int]:
    """Operating points that no other point of the device beats in every figure."""
    figures = [
        np.concatenate([spans.forward_s_PSR[slot].ravel(), spans.backward_s_PSR[slot].ravel(), spans.update_s_PS[slot]])
        for slot in range(len(spans.point_P))
    ]
    if by_energy:
        figures = [
            np.concatenate([own, own * spans.rise_w_P[slot], [spans.wait_w_P[slot]]])
            for slot, own in enumerate(figures)
        ]
    useful: list[int] = []
    for index in range(int(spans.type_P.max()) + 1):
        slots = spans.slots_of(index)
        for slot in slots:
            beaten = any(
                (figures[other] <= figures[slot]).all() and (other < slot or (figures[other] < figures[slot]).any())
                for other in slots
                if other != slot
            )
            if not beaten:
                useful.append(slot)
    return useful


def most_units_TS(problem: Problem, types: DeviceTypes, spans: SpanTables, in_flight: int) -> np.ndarray:
    """Most share units of each span that fit the memory of each device type, shape (T, S)."""
    found_TS = np.zeros((len(types.device_T), len(spans.start_S)), dtype=np.int32)
    layers = problem.model.layers
    widest_bytes = max(problem.model.input_bytes, *(layer.activation_bytes for layer in layers))
    for index, device in enumerate(types.device_T):
        # Every part fits where the whole model would, with the largest messages at both ends.
        less_bytes = device.memory_bytes - 4 * widest_bytes * spans.micro_batch
        tight = msgspec.structs.replace(device, memory_bytes=max(less_bytes, 1))
        if most_rows(tight, 0, len(layers), in_flight, problem) >= spans.micro_batch:
            found_TS[index] = spans.units
            continue
        for number, (start, stop) in enumerate(zip(spans.start_S.tolist(), spans.stop_S.tolist(), strict=True)):
            rows = most_rows(device, start, stop, in_flight, problem)
            found_TS[index, number] = min(rows // spans.step, spans.units)
    return found_TS
