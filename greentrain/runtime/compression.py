"""How a bucket of gradients travels: as it is, as halves, or as the product of two thin matrices.

Each way is a generator: it starts a sum, yields what to wait for, goes on with the result, and has left the sum of the
gradients in the bucket when it ends. What it learns for the next round it keeps only then: a round that is given up
changes nothing. Every rank of a group takes the same steps in the same order.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from greentrain.runtime.buckets import Bucket
from greentrain.runtime.options import TrainingOptions

__all__ = ["AllReduce", "Steps", "Travel", "Waitable", "travel_of"]


class Waitable(Protocol):
    """A sum that was started."""

    def wait(self) -> object:
        """Wait for it."""
        ...


# Starts the sum of a tensor over the group, in place.
AllReduce = Callable[[Tensor], Waitable]
Steps = Generator[Waitable, None, None]


class Travel(Protocol):
    """A way for buckets to travel."""

    def steps(self, bucket: Bucket, all_reduce: AllReduce) -> Steps:
        """Sum a bucket over the group."""
        ...


def travel_of(options: TrainingOptions) -> Travel:
    """The way that a run's options ask for."""
    if options.compression == "fp16":
        return Halves()
    if options.compression == "powersgd":
        return ThinMatrices(options.compression_rank)
    return Exactly()


class Exactly:
    """Gradients travel as they are."""

    def steps(self, bucket: Bucket, all_reduce: AllReduce) -> Steps:
        """Sum a bucket in place."""
        yield all_reduce(bucket.flat)


# Small gradients would be no normal halves: they are scaled up by this at first, by less after an overflow.
_FIRST_SCALE = 1024.0


@dataclass
class Halves:
    """Gradients travel as float16, half the bytes of float32, at 11 bits of precision.

    Where the sum does not fit a half, all ranks see it in the result and sum the bucket once more as it is.
    """

    _scales: dict[int, float] = field(default_factory=dict[int, float])

    def steps(self, bucket: Bucket, all_reduce: AllReduce) -> Steps:
        """Sum a bucket as halves."""
        scale = self._scales.get(bucket.number, _FIRST_SCALE)
        halves = (bucket.flat * scale).to(torch.float16)
        yield all_reduce(halves)
        if halves.isfinite().all():
            torch.div(halves.to(bucket.flat.dtype), scale, out=bucket.flat)
            return
        yield all_reduce(bucket.flat)
        self._scales[bucket.number] = max(scale / 2, 1.0)


class _Kept(NamedTuple):
    """What is kept of a matrix between rounds.

    Attributes:
        error_RC: What its gradients have had that did not travel yet: rows, columns.
        right_CK: Right factor of the last round, the start of the next: columns, rank.
    """

    error_RC: Tensor
    right_CK: Tensor


class _Matrix(NamedTuple):
    """A gradient seen as a matrix, and what is kept of it."""

    parameter: nn.Parameter
    gradient_RC: Tensor
    kept: _Kept


# A matrix is split only where that saves half of it, as torch's own hook does.
_LEAST_SAVING = 2


@dataclass
class ThinMatrices:
    """Gradient matrices travel as the product of two thin ones; what that leaves out is added in the next round.

    PowerSGD (Vogels, Karimireddy and Jaggi, NeurIPS 2019, algorithms 1 and 2), on sums instead of means, as the
    gradients are weighted by rows already. Vectors and small matrices travel as they are. Not reused from torch: its
    hook takes DDP's buckets, divides by the ranks and updates its memory before a round has succeeded.

    Attributes:
        rank: Columns of the thin matrices.
    """

    rank: int
    _kept: dict[nn.Parameter, _Kept] = field(default_factory=dict[nn.Parameter, _Kept])

    def steps(self, bucket: Bucket, all_reduce: AllReduce) -> Steps:
        """Sum a bucket as thin matrices; two messages."""
        matrices, others = self._divided(bucket)
        for matrix in matrices:
            matrix.gradient_RC.add_(matrix.kept.error_RC)
        lefts = [matrix.gradient_RC @ matrix.kept.right_CK for matrix in matrices]
        message, parts = _joined([*others, *lefts])
        yield all_reduce(message)
        for other, part in zip(others, parts, strict=False):
            other.copy_(part)
        if not matrices:
            return
        lefts_RK = [torch.linalg.qr(part)[0] for part in parts[len(others) :]]
        own = [matrix.gradient_RC.T @ left for matrix, left in zip(matrices, lefts_RK, strict=True)]
        message, rights_CK = _joined(own)
        yield all_reduce(message)
        for matrix, left_RK, own_CK, right_CK in zip(matrices, lefts_RK, own, rights_CK, strict=True):
            error_RC = torch.addmm(matrix.gradient_RC, left_RK, own_CK.T, alpha=-1, out=matrix.kept.error_RC)
            self._kept[matrix.parameter] = _Kept(error_RC, right_CK.clone())
            torch.mm(left_RK, right_CK.T, out=matrix.gradient_RC)

    def _divided(self, bucket: Bucket) -> tuple[list[_Matrix], list[Tensor]]:
        matrices: list[_Matrix] = []
        others: list[Tensor] = []
        for number, (parameter, gradient) in enumerate(zip(bucket.parameters, bucket.gradients, strict=True)):
            rows = gradient.shape[0] if gradient.dim() > 1 else 1
            columns = gradient.numel() // rows if rows else 0
            saves = (rows + columns) * self.rank * _LEAST_SAVING < rows * columns
            if saves and gradient.dtype in (torch.float32, torch.float64):  # Others have no QR decomposition.
                gradient_RC = gradient.view(rows, columns)
                kept = self._kept.get(parameter) or self._first(gradient_RC, seed=bucket.number * 4096 + number)
                matrices.append(_Matrix(parameter, gradient_RC, kept))
            else:
                others.append(gradient)
        return matrices, others

    def _first(self, gradient_RC: Tensor, *, seed: int) -> _Kept:
        """Nothing left out yet, and a random start that is the same on every rank."""
        random = torch.Generator().manual_seed(seed)
        right_CK = torch.rand(gradient_RC.shape[1], self.rank, generator=random, dtype=torch.float64) - 0.5
        return _Kept(torch.zeros_like(gradient_RC), right_CK.to(gradient_RC))


def _joined(tensors: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """One message of all, and the views of it that are shaped as they are."""
    message = torch.cat([tensor.reshape(-1) for tensor in tensors])
    parts = message.split([tensor.numel() for tensor in tensors])
    return message, [part.view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]
