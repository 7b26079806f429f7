"""The messages of a round across the cuts of the pipeline: sent without waiting, received ahead of need."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import cast

import torch
import torch.distributed as dist

from greentrain.actions import Action
from greentrain.runtime.group import RunGroup
from greentrain.workloads.workload import Tensors, TensorSpec

__all__ = ["Transfers"]

# Receives that are posted before they are needed; more would only hold more buffers.
_POSTED_AHEAD = 4


@dataclass
class Transfers:
    """What one device sends and receives in one round.

    Attributes:
        group: The joined ranks.
        rows: Half-open rows of each micro-batch that this device holds.
        incoming: Tensors that enter the stage from the one before.
        outgoing: Tensors that leave it towards the next.
        receives: This device's receives of the round, in order.
    """

    group: RunGroup
    rows: tuple[int, int]
    incoming: tuple[TensorSpec, ...]
    outgoing: tuple[TensorSpec, ...]
    receives: Sequence[Action]
    _received: dict[tuple[str, int], Tensors] = field(default_factory=dict[tuple[str, int], Tensors])
    _pending: dict[tuple[str, int, str | None], list[dist.Work]] = field(
        default_factory=dict[tuple[str, int, "str | None"], "list[dist.Work]"]
    )
    _sends: list[tuple[dist.Work, torch.Tensor]] = field(default_factory=list[tuple["dist.Work", torch.Tensor]])
    _posted_n: int = 0
    _received_n: int = 0

    def send(self, action: Action, tensors: Tensors) -> None:
        """Hand a message to gloo without waiting for it.

        Args:
            action: ``SF`` or ``SB``.
            tensors: This device's rows of the micro-batch.
        """
        low, high = action.first_row - self.rows[0], action.last_row - self.rows[0]
        self._sends = [(work, kept) for work, kept in self._sends if not work.is_completed()]
        for number, tensor in enumerate(tensors):
            part = tensor.detach()[low:high].contiguous()
            work = dist.isend(part, dst=self.group.ranks[cast("str", action.peer)], tag=_tag(action, number))
            assert work is not None
            self._sends.append((work, part))

    def receive(self, action: Action) -> None:
        """Wait for a message; those that follow are posted first."""
        self._post(self.receives[self._posted_n : self._received_n + _POSTED_AHEAD])
        for work in self._pending.pop(_key(action)):
            work.wait()
        self._received_n += 1
        if action.kind == "RF":
            for tensor, spec in zip(self._received["F", action.micro_batch], self.incoming, strict=True):
                tensor.requires_grad_(spec.needs_gradient)

    def take(self, direction: str, micro_batch: int) -> Tensors:
        """What has been received of a micro-batch: inputs (``F``) or gradients of the outputs (``B``)."""
        return self._received.pop((direction, micro_batch))

    def finish(self) -> None:
        """Wait until everything that was sent has left."""
        for work, _ in self._sends:
            work.wait()

    def _post(self, receives: Sequence[Action]) -> None:
        first, last = self.rows
        for action in receives:
            direction = action.kind[-1]
            key = (direction, action.micro_batch)
            if key not in self._received:
                specs = self.incoming if direction == "F" else [spec for spec in self.outgoing if spec.needs_gradient]
                self._received[key] = tuple(
                    torch.empty((last - first, *spec.shape), dtype=spec.dtype) for spec in specs
                )
            low, high = action.first_row - first, action.last_row - first
            works: list[dist.Work] = []
            for number, tensor in enumerate(self._received[key]):
                # detach: a later rows' message must not be written through autograd.
                part = tensor.detach()[low:high]
                work = dist.irecv(part, src=self.group.ranks[cast("str", action.peer)], tag=_tag(action, number))
                assert work is not None
                works.append(work)
            self._pending[_key(action)] = works
            self._posted_n += 1


def _key(action: Action) -> tuple[str, int, str | None]:
    return (action.kind, action.micro_batch, action.peer)


def _tag(action: Action, number: int) -> int:
    """A message's tag: micro-batch, direction and tensor; at most eight tensors cross a cut."""
    return action.micro_batch * 16 + (8 if action.kind[-1] == "B" else 0) + number
