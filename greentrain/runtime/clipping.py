"""The length of the whole model's gradient, and gradients cut to it, when no device has the whole model."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

__all__ = ["clip", "global_norm"]


def global_norm(owned: Sequence[nn.Parameter], *, alone: bool) -> Tensor:
    """The 2-norm of the whole model's gradient, float64. Call on every rank of the run, after the gradient sums.

    Args:
        owned: This device's trainable parameters that no other rank counts: of weights that several devices hold,
            one of them counts them; of weights that are split, each device counts its part.
        alone: Whether this is the run's only device.

    Raises:
        RuntimeError: From gloo when a peer is gone or silent.
    """
    gradients = [parameter.grad for parameter in owned if parameter.grad is not None]
    squared = torch.nn.utils.get_total_norm(gradients).cpu().double().square()
    if not alone:
        dist.all_reduce(squared)
    return squared.sqrt()


def clip(parameters: Sequence[nn.Parameter], clip_norm: float, norm: Tensor) -> None:
    """Scale gradients by ``clip_norm / norm`` where the norm is larger, as ``torch.nn.utils.clip_grad_norm_`` does."""
    if parameters:
        torch.nn.utils.clip_grads_with_norm_(parameters, clip_norm, norm.to(parameters[0].device))
