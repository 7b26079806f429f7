"""Workload: a model as a list of blocks, its loss, its optimizer and the data it learns from."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from greentrain.objective import Optimizer

__all__ = ["Tensors", "Workload", "run_blocks"]

Tensors = tuple[Tensor, ...]


@dataclass(frozen=True, kw_only=True)
class Workload:
    """What the profiler, the planner and the runtime need to know of a model.

    A block takes the tensors that the block before it returned (``block(*tensors)``) and returns a
    tensor or a tuple of tensors. The first dimension of every tensor counts samples, so that rows can
    be shared out among devices; a block must treat rows independently (no batch normalisation).

    Attributes:
        name: Value of ``--model``.
        description: One line for people.
        dataset: Name of the data set in ``greentrain_datasets``.
        build: Makes all blocks from a seed; the same seed gives the same weights on every device.
        example: Makes inputs and targets of ``n`` samples for profiling, with the shapes of the data.
        loss: Mean loss over rows from the last block's output and the targets.
        optimizer: Kind of optimizer, which decides its memory.
        learning_rate: Step size.
        batch: Default samples per round.
        micro_batches: Default candidate micro-batch sizes.
        epochs: Default number of epochs.
        target_accuracy: Held-out accuracy that the defaults reach.
    """

    name: str
    description: str
    dataset: str
    build: Callable[[int], list[nn.Module]]
    example: Callable[[int], tuple[Tensors, Tensor]]
    loss: Callable[[Tensor, Tensor], Tensor]
    optimizer: Optimizer
    learning_rate: float
    batch: int
    micro_batches: tuple[int, ...]
    epochs: int
    target_accuracy: float

    def make_optimizer(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """The optimizer over a stage's parameters."""
        trainable = [parameter for parameter in parameters if parameter.requires_grad]
        if self.optimizer == "adam":
            return torch.optim.AdamW(trainable, lr=self.learning_rate)
        momentum = 0.9 if self.optimizer == "momentum" else 0.0
        return torch.optim.SGD(trainable, lr=self.learning_rate, momentum=momentum)


def run_blocks(blocks: Sequence[nn.Module], tensors: Tensors) -> Tensors:
    """Run blocks one after the other and normalise the result to a tuple."""
    for block in blocks:
        result: Tensor | Tensors = block(*tensors)
        tensors = (result,) if isinstance(result, Tensor) else tuple(result)
    return tensors
