"""Differentiable steps of a split layer: a multiplication and the ring in front of it or behind it, as one.

Tensors are (tokens, n, width): a device's tokens are then rows that lie together, so that what travels is never copied
together first. A product's ring and its multiplications overlap (see :mod:`greentrain.runtime.collectives`), forward
as well as backward, and the weights' gradients are computed while the last pieces travel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional

from greentrain.runtime.collectives import Bounds, Ring, share_bounds
from greentrain.sharing import Sharing, tile_bounds

__all__ = [
    "Seat",
    "count_once",
    "gather_matmul",
    "matmul_reduce",
    "matmul_scatter",
    "project_and_gather",
    "reduce_matmul",
    "slice_to_whole",
    "sum_gradients",
    "whole_to_slice",
]


@dataclass
class Seat:
    """A device's place in a group that shares its work inside a sample.

    Attributes:
        sharing: How the group shares; not ``samples``.
        shares: Its shares.
        position: The device's place among them.
        ring: The joined group; None before it is joined.
        stock: Whether AllReduces are gloo's own; for comparison.
    """

    sharing: Sharing
    shares: tuple[int, ...]
    position: int
    ring: Ring | None = None
    stock: bool = False

    @property
    def joined(self) -> Ring:
        """The ring."""
        assert self.ring is not None, "the group is not joined yet"
        return self.ring

    @property
    def slices_tokens(self) -> bool:
        """Whether a device holds some tokens of the hidden state between the parts of a layer, or all."""
        return self.sharing in ("tensor_sequence", "sequence")

    def own(self, n: int) -> tuple[int, int]:
        """This device's half-open range of ``n`` heads, columns or tokens."""
        return share_bounds(self.shares, n)[self.position]

    def rows(self, tokens: int, n: int) -> Bounds:
        """Each device's range of the rows (tokens × n)."""
        return [(first * n, last * n) for first, last in share_bounds(self.shares, tokens)]


def gather_matmul(own: Tensor, weight: Tensor, bias: Tensor | None, seat: Seat, tokens: int) -> Tensor:
    """All devices' tokens times this device's rows of a weight: an AllGather and its product.

    Args:
        own: This device's tokens (own tokens, n, width).
        weight: (out, width).
        bias: (out,) or None.
        seat: The device's place.
        tokens: Tokens of a sample.

    Returns:
        (tokens, n, out).
    """
    return cast("Tensor", _GatherMatmul.apply(own, weight, bias, seat, tokens))


def matmul_scatter(middle: Tensor, weight: Tensor, seat: Seat) -> Tensor:
    """This device's columns (tokens, n, in) times those of a weight (out, in), summed to own tokens by a ring."""
    return cast("Tensor", _MatmulScatter.apply(middle, weight, seat))


def reduce_matmul(whole: Tensor, weight: Tensor, bias: Tensor | None, seat: Seat) -> Tensor:
    """Whole tokens times this device's rows of a weight; backward an AllReduce."""
    return cast("Tensor", _ReduceMatmul.apply(whole, weight, bias, seat))


def matmul_reduce(middle: Tensor, weight: Tensor, seat: Seat) -> Tensor:
    """This device's columns times those of a weight, summed everywhere by an AllReduce."""
    return cast("Tensor", _MatmulReduce.apply(middle, weight, seat))


def project_and_gather(
    own: Tensor, weight: Tensor, bias: Tensor | None, seat: Seat, tokens: int, query_width: int
) -> tuple[Tensor, Tensor]:
    """Queries of own tokens, and keys and values of all: these are gathered while those are computed.

    Args:
        own: This device's tokens (own tokens, n, width).
        weight: Queries, then keys and values (out, width).
        bias: (out,) or None.
        seat: The device's place.
        tokens: Tokens of a sample.
        query_width: Rows of the weight that make queries.
    """
    return cast("tuple[Tensor, Tensor]", _ProjectAndGather.apply(own, weight, bias, seat, tokens, query_width))


def slice_to_whole(own: Tensor, seat: Seat, tokens: int) -> Tensor:
    """Own tokens to all tokens, by an AllGather. What follows finds the same gradient on every device."""
    return cast("Tensor", _SliceToWhole.apply(own, seat, tokens))


def whole_to_slice(whole: Tensor, seat: Seat) -> Tensor:
    """All tokens to own tokens; backward an AllGather."""
    return cast("Tensor", _WholeToSlice.apply(whole, seat))


def sum_gradients(tensors: Sequence[Tensor], seat: Seat) -> tuple[Tensor, ...]:
    """Leave tensors (n, …) as they are; backward, sum their gradients over the group by one AllReduce."""
    return cast("tuple[Tensor, ...]", _SumGradients.apply(seat, *tensors)) if tensors else ()


def count_once(tensors: Sequence[Tensor], seat: Seat) -> tuple[Tensor, ...]:
    """Leave tensors as they are; backward, only the first device counts a gradient that all have whole."""
    return cast("tuple[Tensor, ...]", _CountOnce.apply(seat, *tensors)) if tensors else ()


def _multiply(rows: Tensor, weight: Tensor, bias: Tensor | None, into: Tensor) -> None:
    if bias is None:
        torch.mm(rows, weight.t(), out=into)
    else:
        torch.addmm(bias, rows, weight.t(), out=into)


def _flat(tensor: Tensor) -> Tensor:
    """(tokens, n, width) to (rows, width)."""
    return tensor.reshape(-1, tensor.shape[2])


class _WeightGradients:
    """Gradients of a weight and its bias, each computed when asked for and wanted."""

    def __init__(self, context: Any, inputs: Tensor, outputs: Tensor, *, first: int = 1) -> None:
        self.weight: Tensor | None = None
        self.bias: Tensor | None = None
        self._context, self._inputs, self._outputs, self._first = context, inputs, outputs, first

    def compute(self) -> None:
        wanted = self._context.needs_input_grad
        if wanted[self._first]:
            self.weight = self._outputs.t() @ self._inputs
        if wanted[self._first + 1]:
            self.bias = self._outputs.sum(0)


class _GatherMatmul(Function):
    @staticmethod
    def forward(ctx: Any, own: Tensor, weight: Tensor, bias: Tensor | None, seat: Seat, tokens: int) -> Tensor:
        n = own.shape[1]
        product = own.new_empty(tokens * n, weight.shape[0])
        ctx.seat, ctx.bounds, ctx.shape = seat, seat.rows(tokens, n), own.shape

        def use(first: int, last: int, rows: Tensor) -> None:
            _multiply(rows, weight, bias, product[first:last])

        whole = seat.joined.all_gather(_flat(own), ctx.bounds, use=use)
        ctx.save_for_backward(whole, weight)
        return product.view(tokens, n, -1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        whole, weight = ctx.saved_tensors
        outputs = _flat(gradients[0])
        of_weight = _WeightGradients(ctx, whole, outputs)
        seat: Seat = ctx.seat
        own = seat.joined.reduce_scatter(
            lambda first, last: outputs[first:last] @ weight, ctx.bounds, like=whole, meanwhile=[of_weight.compute]
        )
        return own.view(ctx.shape), of_weight.weight, of_weight.bias, None, None


class _MatmulScatter(Function):
    @staticmethod
    def forward(ctx: Any, middle: Tensor, weight: Tensor, seat: Seat) -> Tensor:
        tokens, n, _ = middle.shape
        rows = _flat(middle)
        ctx.seat, ctx.bounds, ctx.shape = seat, seat.rows(tokens, n), middle.shape
        ctx.save_for_backward(rows, weight)
        own = seat.joined.reduce_scatter(
            lambda first, last: rows[first:last] @ weight.t(), ctx.bounds, like=rows.new_empty(0, weight.shape[0])
        )
        return own.view(-1, n, weight.shape[0])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        rows, weight = ctx.saved_tensors
        of_rows = torch.empty_like(rows)
        of_weight = torch.zeros_like(weight) if ctx.needs_input_grad[1] else None

        def use(first: int, last: int, piece: Tensor) -> None:
            torch.mm(piece, weight, out=of_rows[first:last])
            if of_weight is not None:
                of_weight.addmm_(piece.t(), rows[first:last])

        ctx.seat.joined.all_gather(_flat(gradients[0]), ctx.bounds, use=use)
        return of_rows.view(ctx.shape), of_weight, None


class _ReduceMatmul(Function):
    @staticmethod
    def forward(ctx: Any, whole: Tensor, weight: Tensor, bias: Tensor | None, seat: Seat) -> Tensor:
        ctx.seat, ctx.shape = seat, whole.shape
        ctx.save_for_backward(_flat(whole), weight)
        return functional.linear(whole, weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        whole, weight = ctx.saved_tensors
        outputs = _flat(gradients[0])
        of_weight = _WeightGradients(ctx, whole, outputs)
        of_whole = _all_reduce(outputs, weight, ctx.seat, ctx.shape)
        of_weight.compute()
        return of_whole.view(ctx.shape), of_weight.weight, of_weight.bias, None


class _MatmulReduce(Function):
    @staticmethod
    def forward(ctx: Any, middle: Tensor, weight: Tensor, seat: Seat) -> Tensor:
        rows = _flat(middle)
        ctx.save_for_backward(rows, weight)
        ctx.shape = middle.shape
        return _all_reduce(rows, weight.t(), seat, middle.shape).view(*middle.shape[:2], -1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        rows, weight = ctx.saved_tensors
        outputs = _flat(gradients[0])
        of_weight = outputs.t() @ rows if ctx.needs_input_grad[1] else None
        return (outputs @ weight).view(ctx.shape), of_weight, None


def _all_reduce(rows: Tensor, matrix: Tensor, seat: Seat, shape: Sequence[int]) -> Tensor:
    """Rows times a matrix (in, out), summed over the group."""
    ring = seat.joined
    if seat.stock:
        whole = rows @ matrix
        with ring.guard():
            dist.all_reduce(whole, group=ring.group)
        return whole
    bounds = seat.rows(shape[0], shape[1])
    return ring.all_reduce(
        lambda first, last: rows[first:last] @ matrix, bounds, like=rows.new_empty(0, matrix.shape[1])
    )


class _ProjectAndGather(Function):
    @staticmethod
    def forward(
        ctx: Any, own: Tensor, weight: Tensor, bias: Tensor | None, seat: Seat, tokens: int, query_width: int
    ) -> tuple[Tensor, Tensor]:
        n = own.shape[1]
        rows = _flat(own)
        ctx.seat, ctx.bounds, ctx.shape, ctx.query_width = seat, seat.rows(tokens, n), own.shape, query_width
        ctx.save_for_backward(rows, weight)
        biases = (None, None) if bias is None else (bias[:query_width], bias[query_width:])
        keys = functional.linear(rows, weight[query_width:], biases[1])
        queries = rows.new_empty(rows.shape[0], query_width)
        whole = seat.joined.all_gather(
            keys, ctx.bounds, meanwhile=[lambda: _multiply(rows, weight[:query_width], biases[0], queries)]
        )
        return queries.view(-1, n, query_width), whole.view(tokens, n, -1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        rows, weight = ctx.saved_tensors
        of_queries, of_keys = _flat(gradients[0]), _flat(gradients[1])
        seat: Seat = ctx.seat
        own = seat.joined.reduce_scatter(lambda first, last: of_keys[first:last], ctx.bounds, like=of_keys)
        outputs = torch.cat((of_queries, own), dim=1)
        of_weight = _WeightGradients(ctx, rows, outputs)
        of_weight.compute()
        return (outputs @ weight).view(ctx.shape), of_weight.weight, of_weight.bias, None, None, None


class _SliceToWhole(Function):
    @staticmethod
    def forward(ctx: Any, own: Tensor, seat: Seat, tokens: int) -> Tensor:
        ctx.range = seat.own(tokens)
        bounds = seat.rows(tokens, own.shape[1])
        return seat.joined.all_gather(_flat(own), bounds).view(tokens, *own.shape[1:])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        first, last = ctx.range
        return gradients[0][first:last], None, None


class _WholeToSlice(Function):
    @staticmethod
    def forward(ctx: Any, whole: Tensor, seat: Seat) -> Tensor:
        ctx.seat, ctx.shape = seat, whole.shape
        first, last = seat.own(whole.shape[0])
        return whole[first:last].clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        bounds = ctx.seat.rows(*ctx.shape[:2])
        return ctx.seat.joined.all_gather(_flat(gradients[0]), bounds).view(ctx.shape), None


class _SumGradients(Function):
    @staticmethod
    def forward(ctx: Any, seat: Seat, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.seat = seat
        return tuple(tensor.view_as(tensor) for tensor in tensors)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        seat: Seat = ctx.seat
        # Elements of a sample as rows, so that any number of devices can share them out.
        rows = torch.cat([gradient.flatten(1) for gradient in gradients], dim=1).t().contiguous()
        size = rows.element_size()
        tiles = tile_bounds(seat.shares, rows.shape[0] * size)
        bounds = [(first // size, last // size) for first, last in tiles]
        total = seat.joined.all_reduce(lambda first, last: rows[first:last], bounds, like=rows).t()
        parts = total.split([gradient.flatten(1).shape[1] for gradient in gradients], dim=1)
        return None, *(part.reshape(gradient.shape) for part, gradient in zip(parts, gradients, strict=True))


class _CountOnce(Function):
    @staticmethod
    def forward(ctx: Any, seat: Seat, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.counts = seat.position == 0
        return tuple(tensor.view_as(tensor) for tensor in tensors)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.counts:
            return None, *gradients
        return None, *(torch.zeros_like(gradient) for gradient in gradients)
