"""The forward pass of a stage: in which type, with what kept for the backward pass, from which random numbers."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from greentrain.runtime.precision import autocast
from greentrain.workloads.workload import Tensors, TensorSpec, run_blocks

__all__ = ["StageForward", "random_seed"]


def random_seed(*place: int) -> int:
    """A seed from where numbers are drawn (seed of the run, round, micro-batch, …), the same on every machine."""
    return int.from_bytes(hashlib.blake2b(repr(place).encode(), digest_size=8).digest(), "little")


@dataclass(frozen=True)
class StageForward:
    """How a stage's blocks are run.

    Attributes:
        blocks: The blocks.
        leaving: What leaves the last one.
        stays: Whether the outputs stay on the device, for the loss; else they go to the processor, to be sent.
        recompute: Keep each block's input only, and run the block again in the backward pass.
        device: Where the blocks are.
        dtype: What is multiplied in; None: the type of the weights.
    """

    blocks: Sequence[nn.Module]
    leaving: tuple[TensorSpec, ...]
    stays: bool = True
    recompute: bool = False
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    dtype: torch.dtype | None = None

    def __call__(self, inputs: Tensors, seed: int | None = None) -> Tensors:
        """Outputs of the stage, of the types that the next one expects.

        Args:
            inputs: What enters it, on any device; gradients come back there.
            seed: Start of the random numbers, of dropout for example; None: they go on as they are.
        """
        if seed is not None:
            torch.manual_seed(seed)
        inputs = tuple(tensor.to(self.device) for tensor in inputs)
        with autocast(self.device, self.dtype):
            outputs = self._recomputed(inputs) if self.recompute else run_blocks(self.blocks, inputs)
        if self.dtype is not None:
            outputs = tuple(tensor.to(spec.dtype) for tensor, spec in zip(outputs, self.leaving, strict=True))
        return outputs if self.stays else tuple(tensor.cpu() for tensor in outputs)

    def _recomputed(self, tensors: Tensors) -> Tensors:
        for block in self.blocks:
            # The random numbers of the first run come again.
            tensors = checkpoint(partial(run_blocks, (block,)), tensors, use_reentrant=False)
        return tensors
