"""The messages of a round across the cuts of the pipeline: sent without waiting, received ahead of need.

Who holds what at a cut is said by :func:`greentrain.plan.cut`. Tensors travel as bytes of rows: where both stages
share samples, whole rows of each tensor; elsewhere a range of bytes of every row of the hidden state, and one of all
other tensors' bytes laid one after another.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import NamedTuple, cast

import torch
import torch.distributed as dist
from torch import Tensor

from greentrain.actions import Action
from greentrain.plan import Cut, Plan, cut
from greentrain.runtime.collectives import Courier
from greentrain.runtime.group import RunGroup
from greentrain.sharing import Slice
from greentrain.workloads.workload import Tensors, TensorSpec

__all__ = ["Transfers"]

# Receives that are posted before they are needed; more would only hold more buffers.
_POSTED_AHEAD = 4


class _Field(NamedTuple):
    """Tensors of a cut that travel as one: this device's slice of them, and that of every device beyond the cut.

    Attributes:
        specs: The tensors.
        own: What this device hands over or takes.
        others: What the others do, by device.
        row_bytes: Bytes of a whole row of all of them.
    """

    specs: tuple[TensorSpec, ...]
    own: Slice
    others: dict[str, Slice]
    row_bytes: int

    def common(self, peer: str) -> tuple[slice, int, int]:
        """Rows of the micro-batch and half-open range of bytes of a row that this device and another have."""
        pieces = (self.own, self.others[peer])
        first, last = max(piece.first_row for piece in pieces), min(piece.last_row for piece in pieces)
        low = max(_bytes_of(piece, self.row_bytes)[0] for piece in pieces)
        high = min(_bytes_of(piece, self.row_bytes)[1] for piece in pieces)
        return slice(first, max(first, last)), low, max(low, high)

    def empty(self) -> Tensor:
        """Room for what this device takes: (own rows, own bytes of a row)."""
        low, high = _bytes_of(self.own, self.row_bytes)
        return torch.empty(self.own.last_row - self.own.first_row, high - low, dtype=torch.uint8)

    def tensors(self, taken: Tensor) -> Tensors:
        """The tensors from their bytes. Of a hidden state these may be some of its tokens."""
        if len(self.specs) == 1:
            return (_typed(taken, self.specs[0]),)
        parts = taken.split([spec.row_bytes for spec in self.specs], dim=1)
        # Numbers must lie as their type wants them, not where the bytes of others end.
        copies = [part.clone(memory_format=torch.contiguous_format) for part in parts]
        return tuple(_typed(part, spec) for part, spec in zip(copies, self.specs, strict=True))


def _bytes_of(piece: Slice, row_bytes: int) -> tuple[int, int]:
    return piece.first_part * row_bytes // piece.parts_n, piece.last_part * row_bytes // piece.parts_n


def _typed(taken: Tensor, spec: TensorSpec) -> Tensor:
    """Bytes (rows, …) as the tensor of a spec, or as those of its tokens that there are."""
    elements = taken.view(spec.dtype)
    if taken.shape[1] == spec.row_bytes:
        return elements.view(-1, *spec.shape)
    tokens, *rest = spec.shape
    own_tokens = taken.shape[1] * tokens // spec.row_bytes
    return elements.view(taken.shape[0], own_tokens, *rest)


def _as_bytes(tensors: Tensors) -> Tensor:
    """Tensors of the same rows as bytes (rows, bytes of all of them)."""
    parts = [_matrix(tensor.detach()) for tensor in tensors]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def _matrix(tensor: Tensor) -> Tensor:
    elements = math.prod(tensor.shape[1:])
    return tensor.contiguous().view(tensor.shape[0], elements).view(torch.uint8)


@dataclass
class Transfers:
    """What one device sends and receives in one round.

    Attributes:
        group: The joined ranks.
        plan: The plan.
        stage: This device's stage.
        device: This device.
        incoming: Tensors that enter the stage from the one before.
        outgoing: Tensors that leave it towards the next.
        receives: This device's receives of the round, in order.
        courier: Waits for what is sent, so that its memory is free as soon as it has left.
    """

    group: RunGroup
    plan: Plan
    stage: int
    device: str
    incoming: tuple[TensorSpec, ...]
    outgoing: tuple[TensorSpec, ...]
    receives: Sequence[Action]
    courier: Courier
    _fields: dict[str, list[_Field]] = field(init=False)
    _received: dict[tuple[str, int], list[Tensor]] = field(default_factory=dict[tuple[str, int], "list[Tensor]"])
    _taken: dict[tuple[str, int], Tensors] = field(default_factory=dict[tuple[str, int], Tensors])
    _pending: dict[tuple[str, int, str | None], list[_Arrival]] = field(
        default_factory=dict[tuple[str, int, "str | None"], "list[_Arrival]"]
    )
    _errors: list[BaseException] = field(default_factory=list[BaseException])
    _posted_n: int = 0
    _received_n: int = 0

    def __post_init__(self) -> None:
        back_in = tuple(spec for spec in self.incoming if spec.needs_gradient)
        back_out = tuple(spec for spec in self.outgoing if spec.needs_gradient)
        self._fields = {}
        if self.stage > 0:
            self._fields["RF"] = self._fields_of(self.stage - 1, self.incoming, forward=True)
            self._fields["SB"] = self._fields_of(self.stage - 1, back_in, forward=False)
        if self.stage + 1 < len(self.plan.stages):
            self._fields["SF"] = self._fields_of(self.stage, self.outgoing, forward=True)
            self._fields["RB"] = self._fields_of(self.stage, back_out, forward=False)

    def _fields_of(self, before: int, specs: tuple[TensorSpec, ...], *, forward: bool) -> list[_Field]:
        """What crosses the cut behind a stage."""
        left, right = self.plan.stages[before : before + 2]
        way = cut(left, right, self.plan.micro_batch, forward=forward)
        if left.sharing == right.sharing == "samples":
            return [self._field(way, before, (spec,), spec.row_bytes, forward=forward, side=False) for spec in specs]
        hidden = self._field(way, before, specs[:1], way.hidden_bytes, forward=forward, side=False)
        side = self._field(way, before, specs[1:], way.side_bytes, forward=forward, side=True)
        return [kept for kept in (hidden, side) if kept.specs]

    def _field(
        self, way: Cut, before: int, specs: tuple[TensorSpec, ...], row_bytes: int, *, forward: bool, side: bool
    ) -> _Field:
        ours, theirs = (way.sent, way.taken) if forward == (before == self.stage) else (way.taken, way.sent)
        other = self.plan.stages[before if before != self.stage else before + 1]
        position = self.plan.stages[self.stage].devices.index(self.device)
        pieces = [piece.side if side else piece.hidden for piece in (ours[position], *theirs)]
        return _Field(specs, pieces[0], dict(zip(other.devices, pieces[1:], strict=True)), row_bytes)

    def send(self, action: Action, tensors: Tensors) -> None:
        """Hand a message to gloo without waiting for it.

        Args:
            action: ``SF`` or ``SB``.
            tensors: What this device holds of the micro-batch.
        """
        peer = cast("str", action.peer)
        first = 0
        for number, entry in enumerate(self._fields[action.kind]):
            held = _as_bytes(tensors[first : first + len(entry.specs)])
            first += len(entry.specs)
            rows, low, high = entry.common(peer)
            # Of what it holds whole, a device may send a part.
            offset = 0 if held.shape[1] == entry.row_bytes else _bytes_of(entry.own, entry.row_bytes)[0]
            own_rows = slice(rows.start - entry.own.first_row, rows.stop - entry.own.first_row)
            part = held[own_rows, low - offset : high - offset].contiguous()
            if part.numel() > 0:
                work = dist.isend(part, dst=self.group.ranks[peer], tag=_tag(action, number))
                assert work is not None
                self.courier.carry(_Departure(work, part).wait, failed=self._errors.append)

    def receive(self, action: Action) -> None:
        """Wait for a message; those that follow are posted first."""
        self._post(self.receives[self._posted_n : self._received_n + _POSTED_AHEAD])
        for arrival in self._pending.pop(_key(action)):
            arrival.wait()
        self._received_n += 1

    def take(self, direction: str, micro_batch: int) -> Tensors:
        """What has been received of a micro-batch: inputs (``F``) or gradients of the outputs (``B``)."""
        taken = self._received.pop((direction, micro_batch))
        fields = self._fields[f"R{direction}"]
        tensors = tuple(tensor for entry, part in zip(fields, taken, strict=True) for tensor in entry.tensors(part))
        if direction == "F":
            for tensor, spec in zip(tensors, self.incoming, strict=True):
                tensor.requires_grad_(spec.needs_gradient)
        return tensors

    def finish(self) -> None:
        """Wait until everything that was sent has left.

        Raises:
            RuntimeError: From gloo when a peer is gone or silent.
        """
        done: SimpleQueue[None] = SimpleQueue()
        self.courier.carry(lambda: done.put(None), failed=self._errors.append)
        done.get()
        for error in self._errors:
            raise error

    def _post(self, receives: Sequence[Action]) -> None:
        for action in receives:
            key = (action.kind[-1], action.micro_batch)
            fields = self._fields[action.kind]
            if key not in self._received:
                self._received[key] = [entry.empty() for entry in fields]
            self._pending[_key(action)] = [
                arrival
                for number, (entry, into) in enumerate(zip(fields, self._received[key], strict=True))
                if (arrival := self._arrival(action, number, entry, into)) is not None
            ]
            self._posted_n += 1

    def _arrival(self, action: Action, number: int, entry: _Field, into: Tensor) -> _Arrival | None:
        peer = cast("str", action.peer)
        rows, low, high = entry.common(peer)
        offset = _bytes_of(entry.own, entry.row_bytes)[0]
        own_rows = slice(rows.start - entry.own.first_row, rows.stop - entry.own.first_row)
        place = into[own_rows, low - offset : high - offset]
        if place.numel() == 0:
            return None
        # gloo writes to memory in one piece: a part of every row comes to its place afterwards.
        buffer = place if place.is_contiguous() else torch.empty_like(place, memory_format=torch.contiguous_format)
        work = dist.irecv(buffer, src=self.group.ranks[peer], tag=_tag(action, number))
        assert work is not None
        return _Arrival(work, buffer, place)


class _Departure(NamedTuple):
    """A message on its way out, and its memory."""

    work: dist.Work
    part: Tensor

    def wait(self) -> None:
        self.work.wait()


class _Arrival(NamedTuple):
    """A message on its way in, where it is written, and where it belongs."""

    work: dist.Work
    buffer: Tensor
    place: Tensor

    def wait(self) -> None:
        self.work.wait()
        if self.buffer is not self.place:
            self.place.copy_(self.buffer)


def _key(action: Action) -> tuple[str, int, str | None]:
    return (action.kind, action.micro_batch, action.peer)


def _tag(action: Action, number: int) -> int:
    """A message's tag: micro-batch, direction and tensor; at most eight tensors cross a cut."""
    return action.micro_batch * 16 + (8 if action.kind[-1] == "B" else 0) + number
