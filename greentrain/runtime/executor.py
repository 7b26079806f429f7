"""One interpreter for any action list: it computes, sends, receives, sums and updates, and times each."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import msgspec
import torch
from torch import Tensor, nn

from greentrain.actions import Action
from greentrain.errors import NotSupportedError
from greentrain.plan import Plan
from greentrain.reading import Clock
from greentrain.runtime.clipping import clip, global_norm
from greentrain.runtime.collectives import Courier
from greentrain.runtime.compression import travel_of
from greentrain.runtime.forward import StageForward, random_seed
from greentrain.runtime.gradient_sum import GradientSum
from greentrain.runtime.group import RunGroup
from greentrain.runtime.options import TrainingOptions
from greentrain.runtime.precision import LossScale, compute_type
from greentrain.runtime.split_layer import close_rings, finish_rings, join_rings, split_parameters, summed_parameters
from greentrain.runtime.transfers import Transfers
from greentrain.sharing import slices
from greentrain.workloads.workload import Tensors, TensorSpec, Workload

__all__ = ["Executor", "Rows", "TimedAction"]


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
        commit: Called with this device's part of the round's loss right before the optimizer's step; what it raises
            leaves parameters and optimizer as they were.
        observe: Called with the micro-batch after each forward pass.
        options: What the run is told beside its plan.
        torch_device: Where is computed; the blocks are moved there.
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
    commit: Callable[[float], None] | None = None
    observe: Callable[[int], None] | None = None
    options: TrainingOptions = field(default_factory=TrainingOptions)
    torch_device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    optimizer: torch.optim.Optimizer = field(init=False)
    _parameters: list[nn.Parameter] = field(init=False)
    _sum: GradientSum | None = field(init=False)
    _run_forward: StageForward = field(init=False)
    _loss_scale: LossScale | None = field(init=False)
    _round: _Round = field(init=False)
    _courier: Courier = field(init=False)
    _first_row: int = field(init=False)
    _rows_n: int = field(init=False)

    def __post_init__(self) -> None:
        for block in self.blocks:
            block.to(self.torch_device)
        # Blocks may share a parameter.
        parameters = dict.fromkeys(parameter for block in self.blocks for parameter in block.parameters())
        self._parameters = [parameter for parameter in parameters if parameter.requires_grad]
        self.optimizer = self.workload.make_optimizer(self._parameters)
        self._stage = next(index for index, stage in enumerate(self.plan.stages) if self.device in stage.devices)
        stage = self.plan.stages[self._stage]
        own = slices(stage.sharing, stage.shares, self.plan.micro_batch, sends=False)
        piece = own[stage.devices.index(self.device)]
        self._first_row, self._rows_n = piece.first_row, piece.last_row - piece.first_row
        # Where a group shares work inside a sample, every device has the whole loss: one counts it.
        self._counts_loss = stage.sharing == "samples" or stage.devices[0] == self.device
        self._courier = Courier()
        self._receives = [action for action in self.actions if action.kind in ("RF", "RB")]
        kinds = {action.kind for action in self.actions}
        summed = self._parameters if stage.sharing == "samples" else summed_parameters(self.blocks)
        self._sum = GradientSum(summed, travel_of(self.options)) if "AR" in kinds else None
        # A gradient that goes back to the stage before must not wait behind this stage's sum: there, others wait for
        # it, while this stage has time until they are done.
        self._sums_early = "SB" not in kinds
        self._loss_scale = LossScale() if self.options.precision == "fp16" else None
        dtype = compute_type(self.options.precision, self.torch_device)
        if dtype is not None and stage.sharing != "samples":
            raise NotSupportedError(
                f"precision {self.options.precision} on {self.device}, whose stage shares {stage.sharing!r}.",
                hint="Leave out --precision, or schedule a plan that shares samples.",
            )
        self._run_forward = StageForward(
            self.blocks, self.outgoing, self.is_last, self.plan.recompute, self.torch_device, dtype
        )

    @property
    def is_first(self) -> bool:
        """Whether this stage reads the inputs."""
        return self._stage == 0

    @property
    def is_last(self) -> bool:
        """Whether this stage computes the loss."""
        return self._stage == len(self.plan.stages) - 1

    def run_round(
        self, rows: Rows, *, update: bool = True, learning_rate: float | None = None, seed: int | None = None
    ) -> tuple[float, list[TimedAction]]:
        """Execute one round.

        Args:
            rows: This device's rows of the round.
            update: Step the optimizer; tests compare gradients only.
            learning_rate: Step size of the round; None: as it was.
            seed: Of the round's random numbers, such as dropout's: a round that is done again draws them again; None:
                they go on as they are.

        Returns:
            This device's part of the round's mean loss (0 except on the last stage), and what was done when.

        Raises:
            PeersLostError: A peer is gone or silent.
            RuntimeError: The model itself failed, for want of memory for example.
        """
        self._round = _Round(self._transfers(), seed)
        self._clear_gradients()
        if learning_rate is not None:
            for parameters in self.optimizer.param_groups:
                parameters["lr"] = learning_rate
        timed: list[TimedAction] = []
        for action in self.actions:
            if action.kind == "U":
                timed += self._prepare_update(action)
            start_s = self.clock()
            self._execute(action, rows, update=update)
            if self.torch_device.type == "cuda":
                torch.cuda.synchronize(self.torch_device)  # What was only begun takes no time yet.
            timed.append(TimedAction(self._as_done(action), start_s, self.clock() - start_s))
        if self._round.transfers is not None:
            assert self.group is not None
            with self.group.talking():
                self._round.transfers.finish()
                finish_rings(self.blocks)
        return self._round.loss, timed

    def _clear_gradients(self) -> None:
        """Also what a round that was given up has left."""
        self.optimizer.zero_grad(set_to_none=True)
        if self._sum is not None:
            self._sum.clear()

    def _transfers(self) -> Transfers | None:
        if self.group is None:
            return None
        join_rings(self.blocks, self.group)
        return Transfers(
            self.group, self.plan, self._stage, self.device, self.incoming, self.outgoing, self._receives, self._courier
        )

    def _execute(self, action: Action, rows: Rows, *, update: bool) -> None:
        kind, micro = action.kind, action.micro_batch
        if kind == "F":
            self._forward(micro, rows)
        elif kind == "B":
            self._backward(micro)
        elif kind == "U":
            if update:
                if self.commit is not None:
                    self.commit(self._round.loss)
                self.update()
        else:
            assert self.group is not None
            with self.group.talking():
                self._communicate(action)

    def close(self) -> None:
        """End its threads. Call when another takes its place."""
        self._courier.close()
        close_rings(self.blocks)

    def update(self) -> None:
        """The optimizer's step of the present round, unless its gradients have overflowed."""
        if not self._round.overflowed:
            self.optimizer.step()

    def _prepare_update(self, update: Action) -> list[TimedAction]:
        """Take the loss scale out of the gradients and clip them, both by the norm of the whole model's gradient.

        The wait for the other devices is a sum of its own, no computing.
        """
        clip_norm = self.workload.clip_norm
        if clip_norm is None and self._loss_scale is None:
            return []
        start_s = self.clock()
        norm = self._norm()
        if self._loss_scale is not None:
            factor = self._loss_scale.factor
            self._round.overflowed = not self._loss_scale.undo(self._parameters, float(norm))
            norm /= factor
        if clip_norm is not None:
            clip(self._parameters, clip_norm, norm)
        if self.group is None:
            return []
        action = msgspec.structs.replace(update, kind="AR", bytes=norm.nbytes)
        return [TimedAction(action, start_s, self.clock() - start_s)]

    def _norm(self) -> Tensor:
        # Weights that every device of a group holds have, by now, the same gradients: its first device counts them.
        stage = self.plan.stages[self._stage]
        owned = self._parameters if stage.devices[0] == self.device else split_parameters(self.blocks)
        if self.group is None:
            return global_norm(owned, alone=True)
        with self.group.talking():
            return global_norm(owned, alone=False)

    def _as_done(self, action: Action) -> Action:
        """The action with the bytes that it has really moved."""
        if action.kind != "AR" or self._sum is None or self.options.compression == "none":
            return action
        return msgspec.structs.replace(action, bytes=self._sum.payload_bytes)

    def _communicate(self, action: Action) -> None:
        assert self.group is not None
        kind, micro = action.kind, action.micro_batch
        if kind == "AR":
            assert self._sum is not None
            self._sum.finish(self.group)
            return
        transfers = self._round.transfers
        assert transfers is not None
        if kind in ("RF", "RB"):
            transfers.receive(action)
        else:
            transfers.send(action, self._round.outputs[micro] if kind == "SF" else self._round.input_gradients[micro])

    def _forward(self, micro: int, rows: Rows) -> None:
        state = self._round
        inputs = rows.inputs(micro) if self.is_first else self._taken("F", micro)
        seed = None if state.seed is None else random_seed(state.seed, self._stage, self._first_row, micro)
        outputs = self._run_forward(inputs, seed)
        state.inputs[micro] = inputs
        if self.is_last:
            targets = rows.targets(micro).to(self.torch_device)
            # The mean over this device's rows, weighted so that the parts of all devices and
            # micro-batches add up to the mean over the whole batch.
            loss = self.workload.loss(outputs[0], targets) * (self._rows_n / self.plan.batch)
            state.losses[micro] = loss if self._loss_scale is None else loss * self._loss_scale.factor
            state.loss += float(loss.detach()) if self._counts_loss else 0.0
        else:
            state.outputs[micro] = outputs
        if self.observe is not None:
            self.observe(micro)

    def _taken(self, direction: str, micro: int) -> Tensors:
        assert self._round.transfers is not None
        return self._round.transfers.take(direction, micro)

    def _backward(self, micro: int) -> None:
        state = self._round
        if self._sum is not None and self._sums_early and micro == self.plan.micro_batches_n - 1:
            assert self.group is not None
            self._sum.start(self.group)
        if self.is_last:
            loss = state.losses.pop(micro)
            if loss.requires_grad:
                loss.backward()
        else:
            outputs = state.outputs.pop(micro)
            wanted = [tensor for tensor in outputs if tensor.requires_grad]
            if wanted:
                torch.autograd.backward(wanted, list(self._taken("B", micro)))
        inputs = state.inputs.pop(micro)
        if not self.is_first:
            gradients = [
                torch.zeros_like(tensor) if tensor.grad is None else tensor.grad
                for tensor, spec in zip(inputs, self.incoming, strict=True)
                if spec.needs_gradient
            ]
            # Sent right after; those of earlier micro-batches live on only in their pending sends.
            state.input_gradients = {micro: tuple(gradients)}


@dataclass
class _Round:
    """What is held during one round."""

    transfers: Transfers | None
    seed: int | None
    overflowed: bool = False
    loss: float = 0.0
    inputs: dict[int, Tensors] = field(default_factory=dict[int, Tensors])
    outputs: dict[int, Tensors] = field(default_factory=dict[int, Tensors])
    losses: dict[int, Tensor] = field(default_factory=dict[int, Tensor])
    input_gradients: dict[int, Tensors] = field(default_factory=dict[int, Tensors])
