"""What sharing a block inside a sample moves, from the parts that it names and the shapes of its tensors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from torch import nn

from greentrain.profile import RingProfile
from greentrain.workloads.parts import AttentionParts, FeedForwardParts, LayerParts, Matrix, Splittable
from greentrain.workloads.workload import TensorSpec

__all__ = ["Shareable", "shareable"]


class Shareable(NamedTuple):
    """The fields of :class:`greentrain.profile.LayerProfile` of the same names."""

    heads: int
    sequence: int
    rings: RingProfile | None


def shareable(block: nn.Module, outputs: Sequence[TensorSpec]) -> Shareable:
    """How a block can be shared inside a sample; without heads where every device must compute it whole.

    Args:
        block: The block.
        outputs: The tensors that leave it, the hidden state first.
    """
    hidden = outputs[0]
    tokens = hidden.shape[0] if len(hidden.shape) == 2 else 0
    parts = block.parts() if isinstance(block, Splittable) else None
    if parts is None:
        rings = RingProfile(hidden_bytes=hidden.row_bytes) if tokens or len(outputs) > 1 else None
        return Shareable(0, tokens, rings)
    keys_values = sum(_rows(block, matrix) for matrix in (parts.attention.key, parts.attention.value))
    rings = RingProfile(
        hidden_bytes=hidden.row_bytes,
        key_value_bytes=tokens * keys_values * hidden.dtype.itemsize,
        parts_n=len(list(_each(parts))),
        sum_bytes=sum(_sum_bytes(block, part) for part in _each(parts)),
    )
    return Shareable(parts.attention.key_value_heads, tokens, rings)


def _each(parts: LayerParts) -> Iterator[AttentionParts | FeedForwardParts]:
    yield parts.attention
    if parts.cross is not None:
        yield parts.cross
    yield parts.feed_forward


def _rows(block: nn.Module, matrix: Matrix) -> int:
    """Output rows of a linear map."""
    if matrix.stop is not None:
        return matrix.stop - matrix.start
    return block.get_parameter(matrix.weight).shape[1 if matrix.transposed else 0] - matrix.start


def _sum_bytes(block: nn.Module, part: AttentionParts | FeedForwardParts) -> int:
    """Trainable bytes of a part that every device holds whole: its normalisation, and the bias of its last map."""
    found = sum(weight.nbytes for weight in block.get_submodule(part.norm).parameters() if weight.requires_grad)
    last = part.out if isinstance(part, AttentionParts) else part.narrow
    if last.bias is None:
        return found
    bias = block.get_parameter(last.bias)
    return found + (_rows(block, last) * bias.element_size() if bias.requires_grad else 0)
