"""One interpreter for any action list: it computes, sends, receives, sums and updates, and times each.

A send is handed to gloo and not waited for; receives are posted ahead, so that messages travel while
this device computes.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from greentrain.actions import Action
from greentrain.plan import Plan, row_ranges
from greentrain.reading import Clock
from greentrain.runtime.group import RunGroup
from greentrain.workloads.workload import Tensors, TensorSpec, Workload, run_blocks

__all__ = ["Executor", "Rows", "TimedAction"]

# Receives that are posted before they are needed; more would only hold more buffers.
_POSTED_AHEAD = 4


class Rows(Protocol):
    """Gives this device's rows of a micro-batch of the present round."""

    def inputs(self, micro_batch: int) -> Tensors:
        """Model inputs of this device's rows; asked only of the first stage."""
        ...

    def targets(self, micro_batch: int) -> Tensor:
        """Targets of this device's rows; asked only of the last stage."""
        ...


@dataclass(frozen=True)
class TimedAction:
    """An executed action: monotonic start and length, seconds. A receive's length is the wait for it."""

    action: Action
    start_s: float
    duration_s: float


@dataclass
class Executor:
    """Runs the rounds of one device.

    Attributes:
        plan: The plan.
        device: This device.
        actions: Its list from :func:`greentrain.actions.lower`.
        blocks: The blocks of its stage.
        workload: Loss and optimizer.
        incoming: Tensors that enter the stage from the one before; empty for the first stage.
        outgoing: Tensors that leave the stage towards the next; not asked for on the last stage.
        group: The joined ranks; None when the plan has one device.
        clock: Monotonic clock.
    """

    plan: Plan
    device: str
    actions: Sequence[Action]
    blocks: Sequence[nn.Module]
    workload: Workload
    incoming: tuple[TensorSpec, ...]
    outgoing: tuple[TensorSpec, ...]
    group: RunGroup | None
    clock: Clock = time.monotonic
    optimizer: torch.optim.Optimizer = field(init=False)
    _parameters: list[nn.Parameter] = field(init=False)
    _round: _Round = field(init=False)

    def __post_init__(self) -> None:
        parameters = [parameter for block in self.blocks for parameter in block.parameters()]
        self._parameters = [parameter for parameter in parameters if parameter.requires_grad]
        self.optimizer = self.workload.make_optimizer(self._parameters)
        self._stage = next(index for index, stage in enumerate(self.plan.stages) if self.device in stage.devices)
        stage = self.plan.stages[self._stage]
        self._own_rows = row_ranges(stage.shares)[stage.devices.index(self.device)]
        self._receives = [action for action in self.actions if action.kind in ("RF", "RB")]

    @property
    def is_first(self) -> bool:
        """Whether this stage reads the inputs."""
        return self._stage == 0

    @property
    def is_last(self) -> bool:
        """Whether this stage computes the loss."""
        return self._stage == len(self.plan.stages) - 1

    def run_round(self, rows: Rows, *, update: bool = True) -> tuple[float, list[TimedAction]]:
        """Execute one round.

        Args:
            rows: This device's rows of the round.
            update: Step the optimizer and clear the gradients; tests leave them to be compared.

        Returns:
            This device's part of the round's mean loss (0 except on the last stage), and what was done when.

        Raises:
            PeersLostError: A peer is gone or silent.
            RuntimeError: The model itself failed, for want of memory for example.
        """
        self._round = _Round()
        timed: list[TimedAction] = []
        for action in self.actions:
            start_s = self.clock()
            self._execute(action, rows, update=update)
            timed.append(TimedAction(action, start_s, self.clock() - start_s))
        if self._round.sends:
            assert self.group is not None
            with self.group.talking():
                for work, _ in self._round.sends:
                    work.wait()
        return self._round.loss, timed

    def _execute(self, action: Action, rows: Rows, *, update: bool) -> None:
        kind, micro = action.kind, action.micro_batch
        if kind == "F":
            self._forward(micro, rows)
        elif kind == "B":
            self._backward(micro)
        elif kind == "U":
            if update:
                self.optimizer.step()
                self.optimizer.zero_grad(set_to_none=True)
        else:
            assert self.group is not None
            with self.group.talking():
                self._communicate(action)

    def _communicate(self, action: Action) -> None:
        kind, micro = action.kind, action.micro_batch
        if kind == "AR":
            self._sum_gradients()
        elif kind in ("RF", "RB"):
            self._receive(action)
        else:
            self._send(action, self._round.outputs[micro] if kind == "SF" else self._round.input_gradients[micro])

    def _forward(self, micro: int, rows: Rows) -> None:
        state = self._round
        inputs = rows.inputs(micro) if self.is_first else state.received.pop(("F", micro))
        outputs = run_blocks(self.blocks, inputs)
        state.inputs[micro] = inputs
        if self.is_last:
            first, last = self._own_rows
            # The mean over this device's rows, weighted so that the parts of all devices and
            # micro-batches add up to the mean over the whole batch.
            loss = self.workload.loss(outputs[0], rows.targets(micro)) * ((last - first) / self.plan.batch)
            state.losses[micro] = loss
            state.loss += float(loss.detach())
        else:
            state.outputs[micro] = outputs

    def _backward(self, micro: int) -> None:
        state = self._round
        if self.is_last:
            loss = state.losses.pop(micro)
            if loss.requires_grad:
                loss.backward()
        else:
            outputs = state.outputs.pop(micro)
            wanted = [tensor for tensor in outputs if tensor.requires_grad]
            if wanted:
                torch.autograd.backward(wanted, list(state.received.pop(("B", micro))))
        inputs = state.inputs.pop(micro)
        if not self.is_first:
            gradients = [
                torch.zeros_like(tensor) if tensor.grad is None else tensor.grad
                for tensor, spec in zip(inputs, self.incoming, strict=True)
                if spec.needs_gradient
            ]
            # Sent right after; those of earlier micro-batches live on only in their pending sends.
            state.input_gradients = {micro: tuple(gradients)}

    def _sum_gradients(self) -> None:
        """Sum (not mean: the loss is already weighted) the gradients of the stage's group."""
        assert self.group is not None
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in self._parameters]
        for dtype in sorted({gradient.dtype for gradient in gradients}, key=str):
            chosen = [index for index, gradient in enumerate(gradients) if gradient.dtype == dtype]
            flat = torch.cat([gradients[index].reshape(-1) for index in chosen])
            dist.all_reduce(flat, op=dist.ReduceOp.SUM, group=self.group.stage_group)
            offset = 0
            for index in chosen:
                parameter = self._parameters[index]
                parameter.grad = flat[offset : offset + parameter.numel()].view_as(parameter)
                offset += parameter.numel()

    def _send(self, action: Action, tensors: Tensors) -> None:
        assert self.group is not None
        own_first = self._own_rows[0]
        low, high = action.first_row - own_first, action.last_row - own_first
        self._round.sends = [(work, kept) for work, kept in self._round.sends if not work.is_completed()]
        for number, tensor in enumerate(tensors):
            part = tensor.detach()[low:high].contiguous()
            work = dist.isend(part, dst=self.group.ranks[cast("str", action.peer)], tag=_tag(action, number))
            assert work is not None
            self._round.sends.append((work, part))

    def _receive(self, action: Action) -> None:
        position = self._round.received_n
        self._post(self._receives[self._round.posted_n : position + _POSTED_AHEAD])
        for work in self._round.pending.pop(_key(action)):
            work.wait()
        self._round.received_n += 1
        direction = action.kind[-1]
        if direction == "F":
            for tensor, spec in zip(self._round.received[direction, action.micro_batch], self.incoming, strict=True):
                tensor.requires_grad_(spec.needs_gradient)

    def _post(self, receives: Sequence[Action]) -> None:
        assert self.group is not None
        own_first, own_last = self._own_rows
        for action in receives:
            direction = action.kind[-1]
            key = (direction, action.micro_batch)
            if key not in self._round.received:
                specs = self.incoming if direction == "F" else [spec for spec in self.outgoing if spec.needs_gradient]
                self._round.received[key] = tuple(
                    torch.empty((own_last - own_first, *spec.shape), dtype=spec.dtype) for spec in specs
                )
            low, high = action.first_row - own_first, action.last_row - own_first
            works: list[dist.Work] = []
            for number, tensor in enumerate(self._round.received[key]):
                # detach: a later rows' message must not be written through autograd.
                part = tensor.detach()[low:high]
                work = dist.irecv(part, src=self.group.ranks[cast("str", action.peer)], tag=_tag(action, number))
                assert work is not None
                works.append(work)
            self._round.pending[_key(action)] = works
            self._round.posted_n += 1


@dataclass
class _Round:
    """What is held during one round."""

    loss: float = 0.0
    inputs: dict[int, Tensors] = field(default_factory=dict[int, Tensors])
    outputs: dict[int, Tensors] = field(default_factory=dict[int, Tensors])
    losses: dict[int, Tensor] = field(default_factory=dict[int, Tensor])
    input_gradients: dict[int, Tensors] = field(default_factory=dict[int, Tensors])
    received: dict[tuple[str, int], Tensors] = field(default_factory=dict[tuple[str, int], Tensors])
    pending: dict[tuple[str, int, str | None], list[dist.Work]] = field(
        default_factory=dict[tuple[str, int, "str | None"], "list[dist.Work]"]
    )
    sends: list[tuple[dist.Work, Tensor]] = field(default_factory=list[tuple["dist.Work", Tensor]])
    posted_n: int = 0
    received_n: int = 0


def _key(action: Action) -> tuple[str, int, str | None]:
    return (action.kind, action.micro_batch, action.peer)


def _tag(action: Action, number: int) -> int:
    """A message's tag: micro-batch, direction and tensor; at most eight tensors cross a cut."""
    return action.micro_batch * 16 + (8 if action.kind[-1] == "B" else 0) + number
