"""Buckets: gradients as views of a few flat buffers, so that each buffer is summed by one message and in place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

__all__ = ["Bucket", "buckets_of"]


@dataclass(frozen=True)
class Bucket:
    """Gradients that are summed in one message.

    Attributes:
        number: Its place in the order of summing.
        flat: All of them, one after the other.
        parameters: Whose they are.
        gradients: Views of ``flat``, shaped as the parameters.
    """

    number: int
    flat: Tensor
    parameters: tuple[nn.Parameter, ...]
    gradients: tuple[Tensor, ...]

    def clear(self) -> None:
        """Set the gradients to zero, and make them the parameters' gradients."""
        self.flat.zero_()
        for parameter, gradient in zip(self.parameters, self.gradients, strict=True):
            if parameter.grad is not gradient:
                parameter.grad = gradient


def buckets_of(parameters: Sequence[nn.Parameter], bucket_bytes: int) -> list[Bucket]:
    """Buckets of one element type and at most ``bucket_bytes``, or one parameter, in the order of a backward."""
    found: list[list[nn.Parameter]] = []
    size = 0
    for parameter in reversed(parameters):
        if not found or found[-1][0].dtype != parameter.dtype or size + parameter.nbytes > bucket_bytes:
            found.append([])
            size = 0
        found[-1].append(parameter)
        size += parameter.nbytes
    return [_bucket(number, group) for number, group in enumerate(found)]


def _bucket(number: int, parameters: Sequence[nn.Parameter]) -> Bucket:
    first = parameters[0]
    flat = torch.zeros(sum(p.numel() for p in parameters), dtype=first.dtype, device=first.device)
    parts = flat.split([p.numel() for p in parameters])
    gradients = tuple(part.view(p.shape) for part, p in zip(parts, parameters, strict=True))
    return Bucket(number, flat, tuple(parameters), gradients)
