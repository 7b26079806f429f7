"""The sum of the gradients over the devices that hold the same weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import nn

__all__ = ["sum_gradients"]


def sum_gradients(parameters: Sequence[nn.Parameter], group: dist.ProcessGroup) -> None:
    """Sum (not mean: the loss is already weighted by rows) each parameter's gradient over a group.

    Call on every rank of the group with the same parameters in the same order. A parameter without a gradient counts
    as zeros.
    """
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    for dtype in sorted({gradient.dtype for gradient in gradients}, key=str):
        chosen = [index for index, gradient in enumerate(gradients) if gradient.dtype == dtype]
        flat = torch.cat([gradients[index].reshape(-1) for index in chosen])
        dist.all_reduce(flat, op=dist.ReduceOp.SUM, group=group)
        offset = 0
        for index in chosen:
            parameter = parameters[index]
            parameter.grad = flat[offset : offset + parameter.numel()].view_as(parameter)
            offset += parameter.numel()
