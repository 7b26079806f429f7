"""The sum of the gradients over the devices that hold the same weights, while the last backward still runs.

Gradients are views of a few flat buffers, the buckets, so that a bucket is summed in place: no copy is made before
or after. A bucket's sum starts as soon as the last backward has filled it, and all those before it have started: the
order is the same on every rank whatever the order in which its gradients come.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from greentrain.runtime.buckets import Bucket, buckets_of
from greentrain.runtime.compression import Exactly, Steps, Travel, Waitable
from greentrain.runtime.group import RunGroup

__all__ = ["BUCKET_BYTES", "GradientSum"]

# Small enough that most of a slow link's work overlaps, large enough that latency does not count.
BUCKET_BYTES = 2 << 20


@dataclass
class GradientSum:
    """The sum (not mean: the loss is already weighted by rows) of a stage's gradients over its group.

    Every rank of the group makes it with the same parameters in the same order. In each round: :meth:`clear`, the
    backwards but the last, :meth:`start`, the last backward, :meth:`finish`. A parameter without a gradient counts as
    zeros. A round that was given up is begun anew with :meth:`clear`.

    Attributes:
        parameters: Trainable parameters, each once.
        travel: How they travel.
        payload_bytes: What this device has put into the sums since :meth:`clear`.
    """

    parameters: Sequence[nn.Parameter]
    travel: Travel = field(default_factory=Exactly)
    payload_bytes: int = 0
    _buckets: list[Bucket] = field(init=False)
    _missing: list[int] = field(default_factory=list[int])
    _hooks: list[RemovableHandle] = field(default_factory=list[RemovableHandle])
    _started: list[tuple[Steps, Waitable]] = field(default_factory=list[tuple[Steps, Waitable]])
    _group: RunGroup | None = None

    def __post_init__(self) -> None:
        self._buckets = buckets_of(self.parameters, BUCKET_BYTES)

    def clear(self) -> None:
        """Set all gradients to zero. Call before the first backward of a round."""
        self._stop_watching()
        self._started.clear()
        self.payload_bytes = 0
        for bucket in self._buckets:
            bucket.clear()

    def start(self, group: RunGroup) -> None:
        """Sum each bucket as soon as the backward that follows has filled it."""
        self._group = group
        self._missing = [len(bucket.parameters) for bucket in self._buckets]
        for bucket in self._buckets:
            for parameter in bucket.parameters:
                self._hooks.append(parameter.register_post_accumulate_grad_hook(self._counts_down(bucket.number)))

    def finish(self, group: RunGroup) -> None:
        """Sum what has not been started, and wait until every sum is there.

        Raises:
            RuntimeError: From gloo when a peer is gone or silent.
        """
        self._stop_watching()
        self._group = group
        self._launch(range(len(self._started), len(self._buckets)))
        while self._started:
            going = self._started
            self._started = []
            for steps, work in going:
                work.wait()
                self._go_on(steps)

    def _counts_down(self, number: int) -> Callable[[Tensor], None]:
        def hook(_: Tensor) -> None:
            self._missing[number] -= 1
            first = len(self._started)
            if number == first and self._missing[number] == 0:
                last = first
                while last < len(self._buckets) and self._missing[last] == 0:
                    last += 1
                assert self._group is not None
                with self._group.talking():
                    self._launch(range(first, last))

        return hook

    def _launch(self, numbers: Iterable[int]) -> None:
        for number in numbers:
            self._go_on(self.travel.steps(self._buckets[number], self._all_reduce))

    def _go_on(self, steps: Steps) -> None:
        work = next(steps, None)
        if work is not None:
            self._started.append((steps, work))

    def _all_reduce(self, message: Tensor) -> Waitable:
        assert self._group is not None
        assert self._group.stage_group is not None
        self.payload_bytes += message.nbytes
        work = dist.all_reduce(message, group=self._group.stage_group, async_op=True)
        assert work is not None
        return work

    def _stop_watching(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
