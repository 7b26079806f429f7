"""Seconds, watts and memory of every span of layers, for one micro-batch size and one way to share a stage.

Axis legend: S spans [start, stop) of layers, P slots (a device type at one of its operating points),
T device types, R share units (0 … units; entry 0 is never used). A unit is some rows of the micro-batch, or
some heads or tokens of every sample.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import inf
from typing import Any, NamedTuple, cast

import msgspec
import numpy as np

from greentrain.cost import CostTables, most_rows, unused_power, wake_j
from greentrain.device import Device
from greentrain.objective import Problem
from greentrain.parallel.memory import PROCESS_BYTES, most_bytes, part_bytes, row_bytes, weight_part
from greentrain.parallel.network import handling_s
from greentrain.plan import Sharing, Stage, shares_total, stage_bytes
from greentrain.planners.device_types import DeviceTypes, allowed_points
from greentrain.profile import LayerProfile
from greentrain.sharing import group_sum_bytes

__all__ = ["PartBytes", "SpanTables", "budget_round_j", "counted_w", "most_units_TS", "share_step", "span_tables"]

# A stage is shared out in at most this many units, so that large micro-batches stay searchable.
_MOST_UNITS = 32
# Coarser units than this many are avoided.
_FEWEST_UNITS = 8
_MOST_SINGLE_UNITS = 256
_PER_SLOT = (
    "type_P", "forward_s_PSR", "backward_s_PSR", "network_forward_s_PSR", "network_backward_s_PSR", "update_s_PSR",
    "rise_w_P", "wait_w_P", "unused_w_P", "wake_j_P", "budget_j_P",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class SpanTables:
    """Everything that the search asks about a span of layers.

    Attributes:
        sharing: How a group shares a stage.
        micro_batch: Rows of a micro-batch.
        units: Share units of a stage.
        step: Rows, heads or tokens per share unit.
        micro_batches_n: Micro-batches per round (M).
        start_S: First layer of each span.
        stop_S: One past the last layer.
        span_LL: Number of the span [start, stop), shape (L + 1, L + 1); −1 where there is none.
        shared_S: Whether the layers of the span can be shared so.
        like_S: Number of the first span of the same bytes and tokens, layer by layer: its memory and rings are alike.
        sum_bytes_S: Gradient bytes that a group sums.
        type_P: Device type of each slot.
        point_P: Name of its operating point.
        forward_s_PSR: Forward seconds per micro-batch.
        backward_s_PSR: Backward seconds per micro-batch.
        network_forward_s_PSR: Seconds per micro-batch in which the processor handles messages of the forward pass.
        network_backward_s_PSR: The same of the backward pass.
        update_s_PSR: Optimizer seconds per round.
        rise_w_P: Busy watts above waiting watts.
        wait_w_P: Waiting watts.
        unused_w_P: Watts of the device when it takes no part, where that counts; else 0.
        wake_j_P: Joules per round of waking it.
        budget_j_P: Joules per round that its own budget leaves; infinite without one.
    """

    sharing: Sharing
    micro_batch: int
    units: int
    step: int
    micro_batches_n: int
    start_S: np.ndarray
    stop_S: np.ndarray
    span_LL: np.ndarray
    shared_S: np.ndarray
    like_S: np.ndarray
    sum_bytes_S: np.ndarray
    type_P: np.ndarray
    point_P: tuple[str, ...]
    forward_s_PSR: np.ndarray
    backward_s_PSR: np.ndarray
    network_forward_s_PSR: np.ndarray
    network_backward_s_PSR: np.ndarray
    update_s_PSR: np.ndarray
    rise_w_P: np.ndarray
    wait_w_P: np.ndarray
    unused_w_P: np.ndarray
    wake_j_P: np.ndarray
    budget_j_P: np.ndarray

    @property
    def more_w_P(self) -> np.ndarray:
        """Waiting watts above those that count anyway."""
        return self.wait_w_P - self.unused_w_P

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


def budget_round_j(device: Device, problem: Problem) -> float:
    """Joules per round that a device's own budget leaves; infinite without one."""
    objective = problem.objective
    budget_j = objective.device_budget_j.get(device.id)
    if budget_j is None or objective.job_samples is None:
        return inf
    return budget_j * problem.batch / objective.job_samples


def counted_w(problem: Problem) -> float:
    """Watts of all devices while they take no part, where that counts; else 0."""
    if not problem.objective.count_idle_of_unused:
        return 0.0
    return sum(unused_power(device)[1] for device in problem.cluster.devices)


def share_step(total: int) -> int:
    """Rows, heads or tokens per share unit: the least that divides them into few enough units.

    A total without such a divisor, as a prime, is shared out in single ones while these are searchable at all.
    """
    fits = [step for step in range(1, total + 1) if total % step == 0 and total // step <= _MOST_UNITS]
    if total // fits[0] >= min(total, _FEWEST_UNITS):
        return fits[0]
    return next(step for step in range(1, total + 1) if total % step == 0 and total // step <= _MOST_SINGLE_UNITS)


def span_tables(
    problem: Problem, types: DeviceTypes, micro_batch: int, tables: CostTables, *, sharing: Sharing = "samples",
    by_energy: bool = True,
) -> SpanTables | None:  # fmt: skip
    """Tabulate a problem for one micro-batch size and way to share.

    Args:
        problem: Model, cluster and objective.
        types: Its device types.
        micro_batch: Rows of a micro-batch.
        tables: Layer times.
        sharing: How a group shares a stage.
        by_energy: Whether joules matter; if not, only the fastest operating points are kept.

    Returns:
        The tables, or None where no layer can be shared so.
    """
    layers = problem.model.layers
    spans = [(start, stop) for start in range(len(layers)) for stop in range(start + 1, len(layers) + 1)]
    start_S, stop_S = np.array([start for start, _ in spans]), np.array([stop for _, stop in spans])
    span_LL = np.full((len(layers) + 1, len(layers) + 1), -1, dtype=np.int32)
    span_LL[start_S, stop_S] = np.arange(len(spans))
    totals_S = np.array([shares_total(sharing, layers[start:stop], micro_batch) for start, stop in spans])
    total = int(totals_S.max())
    if total == 0:
        return None
    step = share_step(total)
    part_R = np.arange(total // step + 1) * step / total
    slots = [
        (index, point)
        for index, device in enumerate(types.device_T)
        for point in allowed_points(device, problem.objective)
    ]
    splits = sharing in ("tensor_sequence", "tensor")
    forward_s_PSR = np.zeros((len(slots), len(spans), len(part_R)))
    backward_s_PSR, update_s_PSR = np.zeros_like(forward_s_PSR), np.zeros_like(forward_s_PSR)
    for number, (index, point) in enumerate(slots):
        device = types.device_T[index]
        for unit in range(1, len(part_R)):
            rows = unit * step if sharing == "samples" else micro_batch * (unit * step) / total
            until_s_2L = np.array(tables.until_s(device, point, sharing=sharing, rows=rows, micro_batch=micro_batch))
            own_s_2S = until_s_2L[:, stop_S] - until_s_2L[:, start_S]
            forward_s_PSR[number, :, unit], backward_s_PSR[number, :, unit] = own_s_2S
        update_s_L2 = np.array(
            [tables.shared_update_s(device, point, 0, stop, sharing=sharing) for stop in range(len(layers) + 1)]
        )
        own_s_S2 = update_s_L2[stop_S] - update_s_L2[start_S]
        update_s_PSR[number] = own_s_S2[:, :1] * (part_R if splits else 1.0) + own_s_S2[:, 1:]
    network_s_2PSR = _network_s_2PSR(
        tables, [types.device_T[index] for index, _ in slots], spans, part_R, sharing, micro_batch
    )
    curves = [types.device_T[index].curve(point) for index, point in slots]
    owners = [types.device_T[index] for index, _ in slots]
    # A device in use no longer counts as an unused one.
    counted = problem.objective.count_idle_of_unused
    sums_L = np.cumsum([0, *(group_sum_bytes(sharing, (layer,)) for layer in layers)])
    found = SpanTables(
        sharing=sharing,
        micro_batch=micro_batch,
        units=len(part_R) - 1,
        step=step,
        micro_batches_n=problem.batch // micro_batch,
        start_S=start_S,
        stop_S=stop_S,
        span_LL=span_LL,
        shared_S=totals_S == total,
        like_S=_like_S(layers, spans),
        sum_bytes_S=sums_L[stop_S] - sums_L[start_S],
        type_P=np.array([index for index, _ in slots], dtype=np.int32),
        point_P=tuple(point for _, point in slots),
        forward_s_PSR=forward_s_PSR,
        backward_s_PSR=backward_s_PSR,
        network_forward_s_PSR=network_s_2PSR[0],
        network_backward_s_PSR=network_s_2PSR[1],
        update_s_PSR=update_s_PSR,
        rise_w_P=np.array([curve.busy_w - curve.idle_w for curve in curves]),
        wait_w_P=np.array([curve.idle_w for curve in curves]),
        unused_w_P=np.array([unused_power(device)[1] * counted for device in owners]),
        wake_j_P=np.array([wake_j(device, problem) for device in owners]),
        budget_j_P=np.array([budget_round_j(device, problem) for device in owners]),
    )
    return found.slots(_useful_slots(found, by_energy=by_energy))


def _like_S(layers: Sequence[LayerProfile], spans: list[tuple[int, int]]) -> np.ndarray:
    """Number of the first span that differs from each span in names and FLOP at most; so does what is in front."""
    sizes = [msgspec.structs.replace(layer, name="", forward_flop=0.0) for layer in layers]
    alike = [sizes.index(own) for own in sizes]
    first: dict[tuple[object, ...], int] = {}
    keys = ((alike[start - 1] if start else None, *alike[start:stop], stop == len(layers)) for start, stop in spans)
    return np.array([first.setdefault(key, number) for number, key in enumerate(keys)])


def _network_s_2PSR(
    tables: CostTables, device_P: list[Device], spans: list[tuple[int, int]], part_R: np.ndarray, sharing: Sharing,
    micro_batch: int,
) -> np.ndarray:  # fmt: skip
    """Seconds in which processors handle messages, forward and backward; 0 where nobody measured them."""
    found = np.zeros((2, len(device_P), len(spans), len(part_R)))
    known = [
        (place, device)
        for place, device in enumerate(device_P)
        if device.network_s_per_byte or device.duplex_s_per_byte
    ]
    for number, (start, stop) in enumerate(spans if known else []):
        for way, handled in enumerate(tables.handled(start, stop, sharing)):
            for place, device in known:
                found[way, place, number] = handling_s(
                    device, handled, cast("float", part_R * micro_batch), micro_batch
                )
    return found


def _useful_slots(spans: SpanTables, *, by_energy: bool) -> list[int]:
    """Operating points that no other point of the device beats in every figure."""
    figures = [
        np.stack([spans.forward_s_PSR[slot], spans.backward_s_PSR[slot], spans.update_s_PSR[slot]]).ravel()
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


class PartBytes(NamedTuple):
    """Bytes that each number of units of a stage needs, shape (R,); linear in the micro-batches in flight.

    Attributes:
        first_R: With one micro-batch in flight.
        further_R: More for each further one.
    """

    first_R: np.ndarray
    further_R: np.ndarray


def most_units_TS(
    problem: Problem, types: DeviceTypes, spans: SpanTables, in_flight: int, *, known: dict[int, PartBytes]
) -> np.ndarray:
    """Most share units of each span that fit the memory of each device type, shape (T, S).

    Args:
        problem: Gives the layers.
        types: Give the memory.
        spans: The spans and how they are shared.
        in_flight: Micro-batches that a stage holds at once.
        known: What parts of spans need that are shared inside samples, from one call to the next.
    """
    found_TS = np.full((len(types.device_T), len(spans.start_S)), spans.units, dtype=np.int32)
    layers = problem.model.layers
    widest_bytes = max(
        problem.model.input_bytes, *(max(layer.activation_bytes, layer.key_value_bytes) for layer in layers)
    )
    tight: list[int] = []
    for index, device in enumerate(types.device_T):
        # Every part fits where the whole model would, with the largest messages at both ends and in rings.
        less_bytes = device.memory_bytes - 8 * widest_bytes * spans.micro_batch
        smaller = msgspec.structs.replace(device, memory_bytes=max(less_bytes, 1))
        if most_rows(smaller, 0, len(layers), in_flight, problem) < spans.micro_batch:
            tight.append(index)
    if not tight:
        return found_TS
    least_bytes = min(types.device_T[index].memory_bytes for index in tight)
    most_S = _most_bytes_S(problem, spans, in_flight) + 8 * widest_bytes * spans.micro_batch
    first_S = spans.like_S == np.arange(len(spans.like_S))
    for number in np.flatnonzero(first_S & (most_S > least_bytes)).tolist():
        start, stop = int(spans.start_S[number]), int(spans.stop_S[number])
        if spans.sharing != "samples" and spans.shared_S[number]:
            if number not in known:
                known[number] = _part_bytes(problem, spans, start, stop)
            bytes_R = known[number].first_R + (in_flight - 1) * known[number].further_R
            for index in tight:
                # Whole parts of a byte lie between two numbers of units; the tolerance is rounding.
                fits_R = bytes_R <= types.device_T[index].memory_bytes + 1e-3
                found_TS[index, number] = np.flatnonzero(fits_R).max(initial=0)
        elif spans.sharing == "samples":
            fixed, per_row = row_bytes(start, stop, in_flight, problem)
            for index in tight:
                rows = max((types.device_T[index].memory_bytes - fixed) // per_row, 0)
                found_TS[index, number] = min(rows // spans.step, spans.units)
    return found_TS[:, spans.like_S]


def _most_bytes_S(problem: Problem, spans: SpanTables, in_flight: int) -> np.ndarray:
    """At least what any share of each span needs but for messages: every layer whole, with its stash and its input."""
    layers = problem.model.layers
    inputs = (problem.model.input_bytes, *(layer.activation_bytes for layer in layers[:-1]))
    bytes_L = [
        most_bytes(layer, entering, in_flight, problem, spans.micro_batch)
        for layer, entering in zip(layers, inputs, strict=True)
    ]
    until_L = np.concatenate([[0.0], np.cumsum(np.array(bytes_L, dtype=np.float64))])
    return PROCESS_BYTES + until_L[spans.stop_S] - until_L[spans.start_S]


def _part_bytes(problem: Problem, spans: SpanTables, start: int, stop: int) -> PartBytes:
    """What parts of a stage need that some group shares inside samples; less than the whole."""
    layers = problem.model.layers
    # What follows decides only which tensors of the cut are whole; another such stage needs most.
    after = spans.sharing if stop < len(layers) else None
    stage = Stage(
        start=start, stop=stop, devices=("a", "b"), sharing=spans.sharing, points=("a", "b"), shares=(1, 1),
        in_flight=1, **stage_bytes(layers, start, stop, spans.sharing, after)._asdict(),
    )  # fmt: skip
    rows_R: Any = spans.micro_batch * np.arange(spans.units) / spans.units
    part_R: Any = np.arange(spans.units) / spans.units if weight_part(stage, 0) < 1 else np.ones(spans.units)
    first_R, second_R = (
        np.asarray(part_bytes(held, rows_R, part_R, problem, spans.micro_batch))
        for held in (stage, msgspec.structs.replace(stage, in_flight=2))
    )
    return PartBytes(first_R, second_R - first_R)
