"""The sum of the gradients over the devices that hold the same weights, while the last backward still runs.

Gradients are views of a few flat buffers, the buckets, so that a bucket is summed in place: no copy is made before
or after. A bucket's sum starts as soon as the last backward has filled it, and all those before it have started: the
order is the same on every rank whatever the order in which its gradients come.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from greentrain.runtime.group import RunGroup

__all__ = ["BUCKET_BYTES", "Bucket", "GradientSum", "buckets_of"]

# Small enough that most of a slow link's work overlaps, large enough that latency does not count.
BUCKET_BYTES = 2 << 20


@dataclass
class Bucket:
    """Gradients that are summed in one message.

    Attributes:
        flat: All of them, one after the other.
        parameters: Whose they are.
        gradients: Views of ``flat``, shaped as the parameters.
    """

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
    return [_bucket(group) for group in found]


def _bucket(parameters: Sequence[nn.Parameter]) -> Bucket:
    first = parameters[0]
    flat = torch.zeros(sum(p.numel() for p in parameters), dtype=first.dtype, device=first.device)
    parts = flat.split([p.numel() for p in parameters])
    gradients = tuple(part.view(p.shape) for part, p in zip(parts, parameters, strict=True))
    return Bucket(flat, tuple(parameters), gradients)


class _Pending(Protocol):
    def wait(self) -> object: ...


@dataclass
class GradientSum:
    """The sum (not mean: the loss is already weighted by rows) of a stage's gradients over its group.

    Every rank of the group makes it with the same parameters in the same order. In each round: :meth:`clear`, the
    backwards but the last, :meth:`start`, the last backward, :meth:`finish`. A parameter without a gradient counts as
    zeros. A round that was given up is begun anew with :meth:`clear`.

    Attributes:
        parameters: Trainable parameters, each once.
    """

    parameters: Sequence[nn.Parameter]
    _buckets: list[Bucket] = field(init=False)
    _missing: list[int] = field(init=False)
    _hooks: list[RemovableHandle] = field(default_factory=list[RemovableHandle])
    _works: list[_Pending] = field(default_factory=list[_Pending])
    _group: RunGroup | None = None

    def __post_init__(self) -> None:
        self._buckets = buckets_of(self.parameters, BUCKET_BYTES)
        self._missing = []

    def clear(self) -> None:
        """Set all gradients to zero. Call before the first backward of a round."""
        self._stop_watching()
        self._works.clear()
        for bucket in self._buckets:
            bucket.clear()

    def start(self, group: RunGroup) -> None:
        """Sum each bucket as soon as the backward that follows has filled it."""
        self._group = group
        self._missing = [len(bucket.parameters) for bucket in self._buckets]
        for number, bucket in enumerate(self._buckets):
            for parameter in bucket.parameters:
                self._hooks.append(parameter.register_post_accumulate_grad_hook(self._counts_down(number)))

    def finish(self, group: RunGroup) -> None:
        """Sum what has not been started, and wait until every sum is there.

        Raises:
            RuntimeError: From gloo when a peer is gone or silent.
        """
        self._stop_watching()
        self._group = group
        self._launch(range(len(self._works), len(self._buckets)))
        for work in self._works:
            work.wait()
        self._works.clear()

    def _counts_down(self, number: int) -> _Hook:
        def hook(parameter: Tensor) -> None:
            self._missing[number] -= 1
            first = len(self._works)
            if number == first and self._missing[number] == 0:
                last = first
                while last < len(self._buckets) and self._missing[last] == 0:
                    last += 1
                assert self._group is not None
                with self._group.talking():
                    self._launch(range(first, last))

        return hook

    def _launch(self, numbers: Iterable[int]) -> None:
        assert self._group is not None
        assert self._group.stage_group is not None
        for number in numbers:
            work = dist.all_reduce(self._buckets[number].flat, group=self._group.stage_group, async_op=True)
            assert work is not None
            self._works.append(work)

    def _stop_watching(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()


class _Hook(Protocol):
    def __call__(self, parameter: Tensor, /) -> None: ...
