"""Forward passes of a plan, one request after the other: how long each takes, and its joules."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import cast

import msgspec
import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from greentrain.actions import Action, lower
from greentrain.errors import UsageError
from greentrain.plan import Plan
from greentrain.power import Source
from greentrain.reading import EnergyRecorder
from greentrain.runtime.collectives import Courier, share_bounds
from greentrain.runtime.group import Hello, RunGroup, join
from greentrain.runtime.job import Job
from greentrain.runtime.session import stage_of
from greentrain.runtime.split_layer import finish_rings, join_rings, stage_blocks
from greentrain.runtime.trainer import meter_text
from greentrain.runtime.transfers import Transfers
from greentrain.sharing import slices
from greentrain.workloads.workload import Tensors, TensorSpec, block_outputs, run_blocks, structure_sha256

__all__ = ["DeviceEnergy", "Inferred", "infer", "request_plan"]

_RESULT_TAG = 1 << 22


class DeviceEnergy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a device drew from the first request to the last.

    Attributes:
        device: The device.
        energy_j: Joules; None where its meter saw too little, or where another device of its board counts them.
        error_j: Uncertainty, joules.
        meter: Name of the meter.
        source: Whether measured or modelled.
        counts: Whether its joules are missing when there are none.
        sent_bytes: Payload that it sent to other devices in one request.
    """

    device: str
    energy_j: float | None
    error_j: float | None
    meter: str
    source: Source
    counts: bool
    sent_bytes: int


@dataclass(frozen=True, kw_only=True)
class Inferred:
    """What rank 0 knows after the last request.

    Attributes:
        latency_s_R: Seconds from a request's start to its result on rank 0, by request.
        predictions_R: Most likely class (or next tokens) of each row, by request.
        duration_s: Seconds of all requests.
        devices: What each device drew, by rank.
    """

    latency_s_R: tuple[float, ...]
    predictions_R: tuple[Tensor, ...]
    duration_s: float
    devices: tuple[DeviceEnergy, ...]


def request_plan(plan: Plan, rows: int) -> Plan:
    """The plan for requests of so many samples; groups that share samples share these in the same proportion.

    Raises:
        UsageError: A device would have none of them.
    """
    stages = list(plan.stages)
    for index, stage in enumerate(stages):
        shares = stage.shares
        if stage.sharing == "samples":
            shares = tuple(last - first for first, last in share_bounds(stage.shares, rows))
            if min(shares) == 0:
                idle = stage.devices[shares.index(0)]
                raise UsageError(
                    f"a request of {rows} samples leaves none for {idle}.", hint="Give more --rows, or another plan."
                )
        stages[index] = msgspec.structs.replace(stage, shares=shares, in_flight=1)
    return msgspec.structs.replace(
        plan, batch=rows, micro_batch=rows, stages=tuple(stages), estimate=None, certificate=None
    )


def infer(
    job: Job,
    recorder: EnergyRecorder | None,
    *,
    requests_n: int,
    warm_up_n: int,
    weights: Mapping[str, Tensor],
    say: Callable[[str], None] = lambda text: None,
) -> Inferred | None:
    """Answer requests with this device's part of the plan. Call on every device of the plan.

    All devices begin a request together; the time that this takes is no latency, but its joules count.

    Args:
        job: What to do; its plan is one of :func:`request_plan`.
        recorder: The opened meter; None when this device has none.
        requests_n: Requests that are timed.
        warm_up_n: Requests before them.
        weights: Trained parameters by ``<block>.<name>``; others are those of the seed.
        say: Told which ranks are missing at the start.

    Returns:
        The times on rank 0, None elsewhere.

    Raises:
        UsageError: The ranks disagree on plan, model, data or seed.
        RunError: A peer is gone or silent.
    """
    blocks, outputs_L = _built(job, weights)
    group = _joined(job, recorder, say) if len(job.plan.devices) > 1 else None
    server = _Server(job, group, blocks, outputs_L)
    try:
        with torch.no_grad():
            for number in range(warm_up_n):
                server.answer(number)
            begin_s = time.monotonic()
            before = server.sent_bytes()
            answers = [server.answer(number) for number in range(requests_n)]
            end_s = time.monotonic()
        own = _energy(job.device, group, recorder, begin_s, end_s, (server.sent_bytes() - before) // requests_n)
        gathered = [msgspec.json.encode(own)] if group is None else group.gather_bytes(msgspec.json.encode(own))
    finally:
        if group is not None:
            group.close()
    if not gathered:
        return None
    return Inferred(
        latency_s_R=tuple(latency_s for latency_s, _ in answers),
        predictions_R=tuple(cast("Tensor", predictions) for _, predictions in answers),
        duration_s=end_s - begin_s,
        devices=tuple(msgspec.json.decode(data, type=DeviceEnergy) for data in gathered),
    )


def _built(job: Job, weights: Mapping[str, Tensor]) -> tuple[list[nn.Module], list[tuple[TensorSpec, ...]]]:
    """This device's blocks with trained weights, and what leaves each block of the model."""
    blocks = job.workload.build(job.seed)
    outputs_L = block_outputs(blocks, job.workload.example(1)[0])
    if structure_sha256(blocks, outputs_L) != job.plan.structure_sha256:
        raise UsageError(
            f"plan: made for another model {job.plan.model!r} than this machine builds.",
            hint="Install the same versions on every device, then measure and schedule again.",
        )
    known = {f"{index}.{name}": p for index, block in enumerate(blocks) for name, p in block.named_parameters()}
    strange = sorted(set(weights) - set(known))
    if strange:
        raise UsageError(f"the weights hold {strange[0]!r}, which the model {job.plan.model!r} does not have.")
    with torch.no_grad():
        for name, tensor in weights.items():
            known[name].copy_(tensor)
    own = stage_blocks(job.plan, job.device, blocks, outputs_L)
    return [block.eval() for block in own], outputs_L


def _joined(job: Job, recorder: EnergyRecorder | None, say: Callable[[str], None]) -> RunGroup:
    hello = Hello(
        device=job.device,
        plan_sha256=job.plan_sha256,
        structure_sha256=job.plan.structure_sha256,
        data=f"{job.data.name}, {len(job.data.test_targets)} samples",
        settings=f"inference, seed {job.seed}, {job.max_rounds} requests",
        torch=str(torch.__version__),
        board=job.board,
        meter=meter_text(recorder),
        source=recorder.source if recorder else "modelled",
        scope=recorder.scope if recorder else "process",
    )
    return join(
        job.plan, hello, host=job.host, port=job.port, reach_timeout_s=job.reach_timeout_s,
        join_timeout_s=job.join_timeout_s, message_timeout_s=job.message_timeout_s, say=say,
    )  # fmt: skip


def _energy(
    device: str, group: RunGroup | None, recorder: EnergyRecorder | None, begin_s: float, end_s: float, sent: int
) -> DeviceEnergy:
    # A board's meter counts once.
    counts = recorder is not None and (recorder.scope == "process" or group is None or group.leads_board)
    if recorder is None or not counts:
        return DeviceEnergy(
            device=device, energy_j=None, error_j=None, meter="none", source="modelled", counts=recorder is None,
            sent_bytes=sent,
        )  # fmt: skip
    span = recorder.span(begin_s, end_s)
    return DeviceEnergy(
        device=device, energy_j=span.energy_j, error_j=span.error_j, meter=span.meter, source=span.source, counts=True,
        sent_bytes=sent,
    )  # fmt: skip


class _Server:
    """One device's part of every request."""

    def __init__(
        self, job: Job, group: RunGroup | None, blocks: list[nn.Module], outputs_L: list[tuple[TensorSpec, ...]]
    ) -> None:
        self._job, self._group, self._blocks = job, group, blocks
        plan = job.plan
        stage = stage_of(plan, job.device)
        self._stage = plan.stages.index(stage)
        self._is_last = self._stage == len(plan.stages) - 1
        self._actions = lower(plan, forward_only=True)[job.device]
        own = slices(stage.sharing, stage.shares, plan.micro_batch, sends=False)[stage.devices.index(job.device)]
        self._rows = slice(own.first_row, own.last_row)
        self._incoming = outputs_L[stage.start - 1] if self._stage > 0 else ()
        self._outgoing = outputs_L[stage.stop - 1]
        self._result_shape = outputs_L[-1][0].shape[:-1]
        self._courier = Courier()
        self._moved_bytes = 0

    def sent_bytes(self) -> int:
        """Payload sent so far, as the action list counts it."""
        return self._moved_bytes

    def answer(self, number: int) -> tuple[float, Tensor | None]:
        """One request: seconds until its result is on rank 0, and there the result."""
        inputs = self._inputs(number)
        transfers = self._transfers()
        if self._group is not None:
            self._group.barrier()
        start_s = time.perf_counter()
        outputs: Tensors = ()
        for action in self._actions:
            if action.kind == "F":
                outputs = run_blocks(self._blocks, inputs if self._stage == 0 else _taken(transfers))
            else:
                self._communicate(action, transfers, outputs)
            self._moved_bytes += action.bytes if action.kind != "RF" else 0
        result = self._result(outputs)
        latency_s = time.perf_counter() - start_s
        if self._group is not None and transfers is not None:
            with self._group.talking():
                transfers.finish()
                finish_rings(self._blocks)
        return latency_s, result

    def _inputs(self, number: int) -> Tensors:
        data, size = self._job.data, self._job.plan.micro_batch
        chosen = (np.arange(size)[self._rows] + number * size) % len(data.test_targets)
        return tuple(torch.from_numpy(array[chosen]) for array in data.test_inputs)

    def _transfers(self) -> Transfers | None:
        if self._group is None:
            return None
        join_rings(self._blocks, self._group)
        receives = [action for action in self._actions if action.kind == "RF"]
        return Transfers(
            self._group, self._job.plan, self._stage, self._job.device, self._incoming, self._outgoing, receives,
            self._courier,
        )  # fmt: skip

    def _communicate(self, action: Action, transfers: Transfers | None, outputs: Tensors) -> None:
        assert self._group is not None
        assert transfers is not None
        with self._group.talking():
            if action.kind == "RF":
                transfers.receive(action)
            else:
                transfers.send(action, outputs)

    def _result(self, outputs: Tensors) -> Tensor | None:
        """What the last stage found, on rank 0: the rows of all its devices, or of one that has all."""
        found = outputs[0].argmax(dim=-1) if self._is_last else None
        plan, group = self._job.plan, self._group
        if group is None:
            return found
        last = plan.stages[-1]
        givers = last.devices if last.sharing == "samples" else last.devices[:1]
        with group.talking():
            if found is not None and self._job.device in givers and group.rank != 0:
                dist.send(found.contiguous(), dst=0, tag=_RESULT_TAG)
            if group.rank != 0:
                return None
            pieces = slices(last.sharing, last.shares, plan.micro_batch, sends=False)
            parts: list[Tensor] = []
            for device, piece in zip(givers, pieces, strict=False):
                if device == self._job.device:
                    parts.append(cast("Tensor", found))
                    continue
                part = torch.empty((piece.last_row - piece.first_row, *self._result_shape), dtype=torch.int64)
                dist.recv(part, src=group.ranks[device], tag=_RESULT_TAG)
                parts.append(part)
        return torch.cat(parts)


def _taken(transfers: Transfers | None) -> Tensors:
    assert transfers is not None
    return transfers.take("F", 0)
