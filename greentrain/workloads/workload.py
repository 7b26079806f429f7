"""Workload: a model as a list of blocks, its loss, its optimizer and the data it learns from."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import msgspec
import torch
from torch import Tensor, nn

from greentrain._checks import require, require_id, require_non_negative, require_positive
from greentrain.objective import Optimizer

__all__ = [
    "Schedule",
    "TensorSpec",
    "Tensors",
    "Workload",
    "block_names",
    "block_outputs",
    "build_seeded",
    "learning_rate_at",
    "run_blocks",
    "structure_sha256",
]

Tensors = tuple[Tensor, ...]
Schedule = Literal["constant", "linear", "cosine"]

_ADAMW_WEIGHT_DECAY = 0.01


@dataclass(frozen=True, kw_only=True)
class Workload:
    """What the profiler, the planner and the runtime need to know of a model.

    A block takes the tensors that the block before it returned (``block(*tensors)``) and returns a
    tensor or a tuple of tensors. The first dimension of every tensor counts samples, so that rows can
    be shared out among devices; a block must treat rows independently (no batch normalisation).

    Attributes:
        name: Value of ``--model``.
        description: One line for people.
        dataset: Name of a data set in ``greentrain_datasets``, ``path/to/file.py:attribute``, or a function that
            returns the data: a TrainingData, or a data set of torch or of Hugging Face's ``datasets``.
        build: Makes all blocks from a seed; the same seed gives the same weights on every device.
        example: Makes inputs and targets of ``n`` samples for profiling, with the shapes of the data.
        loss: Mean loss over rows from the last block's output and the targets.
        optimizer: Kind of optimizer, which decides its memory.
        learning_rate: Step size.
        batch: Default samples per round.
        micro_batches: Default candidate micro-batch sizes.
        epochs: Default number of epochs.
        target_accuracy: Held-out accuracy that the defaults reach; None where nobody has measured it.
        schedule: How the step size falls over the rounds of a run, see :func:`learning_rate_at`.
        warmup_rounds: Rounds over which the step size rises to ``learning_rate``.
        clip_norm: Largest norm of the whole model's gradient in a round, a longer one is scaled down to it; None:
            never.
        weight_decay: Share of each weight that a step of size 1 takes off (AdamW); sgd and momentum have none.
    """

    name: str
    description: str
    dataset: str | Callable[[], object]
    build: Callable[[int], list[nn.Module]]
    example: Callable[[int], tuple[Tensors, Tensor]]
    loss: Callable[[Tensor, Tensor], Tensor]
    optimizer: Optimizer
    learning_rate: float
    batch: int
    micro_batches: tuple[int, ...]
    epochs: int
    target_accuracy: float | None
    schedule: Schedule = "constant"
    warmup_rounds: int = 0
    clip_norm: float | None = None
    weight_decay: float = _ADAMW_WEIGHT_DECAY

    def __post_init__(self) -> None:
        require_id(self.name, what="workload name")
        require_positive(learning_rate=self.learning_rate, batch=self.batch, epochs=self.epochs)
        require(len(self.micro_batches) > 0, "at least one micro-batch size is needed")
        for size in self.micro_batches:
            require(size >= 1 and self.batch % size == 0, f"micro-batch {size} does not divide the batch {self.batch}")
        accuracy = self.target_accuracy
        require(accuracy is None or 0 <= accuracy <= 1, f"target_accuracy is {accuracy}, expected 0 to 1")
        schedules = ("constant", "linear", "cosine")
        require(self.schedule in schedules, f"schedule is {self.schedule!r}, expected one of: {', '.join(schedules)}")
        require_non_negative(warmup_rounds=self.warmup_rounds, weight_decay=self.weight_decay)
        require_positive(clip_norm=self.clip_norm)
        require(
            self.optimizer == "adam" or self.weight_decay in (0, _ADAMW_WEIGHT_DECAY),
            f"weight_decay is {self.weight_decay}, but the optimizer {self.optimizer!r} has none; expected adam",
        )

    def make_optimizer(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """The optimizer over a stage's parameters; a stage of frozen blocks gets one without parameters."""
        # A group, since torch refuses an empty list.
        trainable = [{"params": [parameter for parameter in parameters if parameter.requires_grad]}]
        # Fused: one pass over weights, gradients and state instead of about ten.
        if self.optimizer == "adam":
            return torch.optim.AdamW(trainable, lr=self.learning_rate, weight_decay=self.weight_decay, fused=True)
        momentum = 0.9 if self.optimizer == "momentum" else 0.0
        return torch.optim.SGD(trainable, lr=self.learning_rate, momentum=momentum, fused=True)


def learning_rate_at(workload: Workload, round: int, rounds_n: int) -> float:  # noqa: A002
    """Step size of a round, counted from 0, of a run of ``rounds_n``.

    It rises in ``warmup_rounds`` equal steps to the workload's learning rate, then stays (constant) or falls
    along a line or half a cosine that would reach 0 one round after the last.

    Raises:
        ValueError: The run has no such round.
    """
    require(0 <= round < rounds_n, f"round is {round}, expected 0 to {rounds_n - 1}")
    if round < workload.warmup_rounds:
        return workload.learning_rate * (round + 1) / workload.warmup_rounds
    done_ratio = (round - workload.warmup_rounds) / (rounds_n - workload.warmup_rounds)
    if workload.schedule == "linear":
        return workload.learning_rate * (1 - done_ratio)
    if workload.schedule == "cosine":
        return workload.learning_rate * (1 + math.cos(math.pi * done_ratio)) / 2
    return workload.learning_rate


@dataclass(frozen=True, kw_only=True)
class TensorSpec:
    """A tensor that leaves a block, without its rows.

    Attributes:
        shape: Shape of one row.
        dtype: Element type.
        needs_gradient: Whether a gradient of the same shape comes back in the backward pass.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    needs_gradient: bool

    @property
    def row_bytes(self) -> int:
        """Bytes per sample."""
        elements = 1
        for size in self.shape:
            elements *= size
        return elements * self.dtype.itemsize


def run_blocks(blocks: Sequence[nn.Module], tensors: Tensors) -> Tensors:
    """Run blocks one after the other and normalise the result to a tuple."""
    for block in blocks:
        result: Tensor | Tensors = block(*tensors)
        tensors = (result,) if isinstance(result, Tensor) else tuple(result)
    return tensors


def build_seeded(makers: Sequence[Callable[[], nn.Module]], seed: int) -> list[nn.Module]:
    """Make each block under a seed of its own, leaving the global random numbers alone.

    A block's weights depend on the seed and its place only, not on what was made before it. Initialise
    uniformly: uniform draws have the same bits on every processor, normal ones differ in the last
    bit between vector units.
    """
    blocks: list[nn.Module] = []
    with torch.random.fork_rng(devices=[]):
        for index, make in enumerate(makers):
            torch.manual_seed(seed * 1_000_003 + index)
            blocks.append(make())
    return blocks


def block_names(blocks: Sequence[nn.Module]) -> tuple[str, ...]:
    """Name of each block: its ``block_name`` attribute, or its class, with its index in front."""
    return tuple(
        f"{index}-{getattr(block, 'block_name', None) or type(block).__name__.lower()}"
        for index, block in enumerate(blocks)
    )


def block_outputs(blocks: Sequence[nn.Module], inputs: Tensors) -> list[tuple[TensorSpec, ...]]:
    """The tensors that leave each block, from one forward pass.

    A floating tensor needs a gradient when something before it is trainable; masks that merely pass
    through need none, and neither does anything behind frozen blocks only.
    """
    specs: list[tuple[TensorSpec, ...]] = []
    tensors = inputs
    with torch.enable_grad():
        for block in blocks:
            outputs = run_blocks((block,), tensors)
            specs.append(
                tuple(
                    TensorSpec(shape=tuple(output.shape[1:]), dtype=output.dtype, needs_gradient=output.requires_grad)
                    for output in outputs
                )
            )
            tensors = tuple(output.detach().requires_grad_(output.requires_grad) for output in outputs)
    return specs


def structure_sha256(blocks: Sequence[nn.Module], outputs_L: Sequence[tuple[TensorSpec, ...]]) -> str:
    """Hash of block names, parameter names, shapes and types, and outputs: equal on devices with one model.

    Args:
        blocks: All blocks of the model.
        outputs_L: What leaves each of them, from :func:`block_outputs`.
    """
    structure = [
        {
            "name": name,
            "parameters": [
                [key, list(parameter.shape), str(parameter.dtype), parameter.requires_grad]
                for key, parameter in block.named_parameters()
            ],
            "outputs": [[list(spec.shape), str(spec.dtype)] for spec in outputs],
        }
        for name, block, outputs in zip(block_names(blocks), blocks, outputs_L, strict=True)
    ]
    return hashlib.sha256(msgspec.json.encode(structure, order="sorted")).hexdigest()
