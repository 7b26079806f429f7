"""Rings over uneven shards: AllGather, ReduceScatter and AllReduce, with computing while the shards travel.

gloo's own ReduceScatter moves as much as an AllReduce, and its AllGather wants even shards. Here each device of a
ring sends to the next and receives from the one before, and every byte crosses each link at most once: of a tensor
whose rows are shared out among g devices, device i sends all but the rows of device i+1 in an AllGather and all but
its own in a ReduceScatter. Shards travel in pieces, so that a device computes on one while the next is on its way
(the tiles of Galaxy, arXiv 2405.17245); a thread of the ring's own waits for them and passes them on.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import NamedTuple, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ["Bounds", "Courier", "Meanwhile", "Ring", "even_bounds", "share_bounds"]

Bounds = Sequence[tuple[int, int]]
Meanwhile = Sequence[Callable[[], None]]
_Item = TypeVar("_Item")

# A shard travels in so many pieces at most, none smaller than this: finer ones hide more, but each costs a message.
_PIECES_N = 8
_PIECE_BYTES = 1 << 15
# Tags come round; by then the messages of before are long gone.
_TAGS_N = 1 << 15


def share_bounds(shares: Sequence[int], n: int) -> tuple[tuple[int, int], ...]:
    """Half-open ranges of ``n`` things in proportion to shares; they add up to all of them."""
    total = sum(shares)
    marks = [sum(shares[:count]) * n // total for count in range(len(shares) + 1)]
    return tuple(itertools.pairwise(marks))


def even_bounds(group_n: int, n: int) -> tuple[tuple[int, int], ...]:
    """Half-open ranges of ``n`` things, as even as can be."""
    return share_bounds((1,) * group_n, n)


class _Message(NamedTuple):
    """A piece of a shard on its way.

    Attributes:
        shard: Position of the device whose rows these are.
        first: First row in the whole tensor.
        last: One past the last.
        tag: Tag of the message.
    """

    shard: int
    first: int
    last: int
    tag: int


@dataclass
class Ring:
    """The devices of a group, each between two neighbours. Close it when the run ends.

    All devices of the group call the same methods in the same order with tensors of the same shape and type. What a
    method returns or takes must not be written to before :meth:`finish`: it may still be leaving.

    Attributes:
        group: The process group of exactly these devices, in the order of the ring.
        guard: Entered around whatever talks to the neighbours; turns gloo's errors into the run's.
        overlap: Whether pieces are computed on while others travel; off only to be compared with.
        sent_bytes: Payload sent so far.
        received_bytes: Payload received so far.
    """

    group: dist.ProcessGroup
    guard: Callable[[], AbstractContextManager[None]] = contextlib.nullcontext
    overlap: bool = True
    sent_bytes: int = 0
    received_bytes: int = 0
    _courier: Courier = field(init=False)
    _sent_n: int = 0
    _received_n: int = 0

    def __post_init__(self) -> None:
        self._courier = Courier()

    @property
    def size(self) -> int:
        """Devices of the ring (g)."""
        return self.group.size()

    @property
    def position(self) -> int:
        """This device's place in the ring."""
        return self.group.rank()

    def all_gather(
        self,
        own: Tensor,
        bounds: Bounds,
        *,
        use: Callable[[int, int, Tensor], None] | None = None,
        meanwhile: Meanwhile = (),
    ) -> Tensor:
        """Bring all devices' rows together.

        Args:
            own: This device's rows, of shape (rows, …).
            bounds: Rows of each device in the whole.
            use: Called once for each piece of the whole, with its range and rows, as soon as it is there.
            meanwhile: Called one by one whenever no piece is there to be used.

        Returns:
            The whole tensor (all rows, …).
        """
        whole = own.new_empty((bounds[-1][1], *own.shape[1:]))
        first, last = bounds[self.position]
        whole[first:last] = own
        # Each device passes on what it gets, but the last.
        outgoing = self._messages(whole, bounds, self.position, self.size - 1, self._sent_n)
        incoming = self._messages(whole, bounds, self.position - 1, self.size - 1, self._received_n)
        self._sent_n += len(outgoing)
        self._received_n += len(incoming)
        onward = {(message.first, message.last): message for message in outgoing}
        sends: list[dist.Work] = []
        with self.guard():
            receives = [self._receive(whole[message.first : message.last], message) for message in incoming]
            own_pieces = [message for message in outgoing if message.shard == self.position]
            sends += [self._send(whole[message.first : message.last], message) for message in own_pieces]
        arrived: SimpleQueue[_Message | BaseException] = SimpleQueue()

        def carry() -> None:
            for message, receive in zip(incoming, receives, strict=True):
                receive.wait()
                passed = onward.get((message.first, message.last))
                if passed is not None:
                    sends.append(self._send(whole[passed.first : passed.last], passed))
                arrived.put(message)
            for send in sends:
                send.wait()

        self._courier.carry(carry, failed=arrived.put)
        self._use(whole, (first, last), incoming, arrived, use, list(meanwhile))
        return whole

    def _use(
        self,
        whole: Tensor,
        own: tuple[int, int],
        incoming: Sequence[_Message],
        arrived: SimpleQueue[_Message | BaseException],
        use: Callable[[int, int, Tensor], None] | None,
        meanwhile: list[Callable[[], None]],
    ) -> None:
        """Use this device's own rows, then what comes, in the order in which it comes."""
        if use is not None and self.overlap and own[1] > own[0]:
            use(*own, whole[own[0] : own[1]])
        for _ in incoming:
            while self.overlap and meanwhile and arrived.empty():
                meanwhile.pop(0)()
            message = self._got(arrived.get())
            if use is not None and self.overlap:
                use(message.first, message.last, whole[message.first : message.last])
        if use is not None and not self.overlap:
            use(0, whole.shape[0], whole)
        for work in meanwhile:
            work()

    def reduce_scatter(
        self,
        part: Callable[[int, int], Tensor],
        bounds: Bounds,
        *,
        like: Tensor,
        meanwhile: Meanwhile = (),
    ) -> Tensor:
        """Sum all devices' addends; each device keeps the sum of its own rows.

        Args:
            part: Gives this device's addend for a range of rows, each row once.
            bounds: Rows of each device in the whole.
            like: A tensor of any number of rows with the type and shape of the result's rows, (…, …).
            meanwhile: Called one by one when all addends are there and the sums are still on their way.

        Returns:
            The sum over the devices of this device's rows.
        """
        first, last = bounds[self.position]
        result = like.new_empty((last - first, *like.shape[1:]))
        outgoing = self._messages(like, bounds, self.position - 1, self.size - 1, self._sent_n)
        incoming = self._messages(like, bounds, self.position - 2, self.size - 1, self._received_n)
        self._sent_n += len(outgoing)
        self._received_n += len(incoming)
        buffers = [like.new_empty((message.last - message.first, *like.shape[1:])) for message in incoming]
        with self.guard():
            receives = [self._receive(buffer, message) for buffer, message in zip(buffers, incoming, strict=True)]
        before = {(message.first, message.last): number for number, message in enumerate(incoming)}
        parts: SimpleQueue[Tensor | None] = SimpleQueue()
        summed: SimpleQueue[BaseException | None] = SimpleQueue()
        # A group of one has nothing to send, but its own rows.
        own_pieces = self._pieces(like, bounds, self.position)
        order = [(message.first, message.last, message) for message in outgoing]
        order += [(*piece, None) for piece in own_pieces]

        def carry() -> None:
            sends: list[tuple[dist.Work, Tensor]] = []
            for start, stop, message in order:
                addend = parts.get()
                if addend is None:
                    return
                number = before.get((start, stop))
                total = result[start - first : stop - first] if message is None else addend
                if number is not None:
                    receives[number].wait()
                    total = total if message is None else buffers[number]
                    torch.add(buffers[number], addend, out=total)
                elif message is None:
                    total.copy_(addend)
                if message is not None:
                    sends.append((self._send(total, message), total))
            summed.put(None)
            for send, _ in sends:
                send.wait()

        self._courier.carry(carry, failed=summed.put)
        try:
            addends = ((start, stop, part(start, stop).detach().contiguous()) for start, stop, _ in order)
            for _, _, addend in addends if self.overlap else list(addends):
                parts.put(addend)
        except BaseException:
            parts.put(None)
            raise
        waiting = list(meanwhile)
        while waiting and (summed.empty() or not self.overlap):
            waiting.pop(0)()
        self._got(summed.get())
        for work in waiting:
            work()
        return result

    def all_reduce(self, part: Callable[[int, int], Tensor], bounds: Bounds, *, like: Tensor) -> Tensor:
        """Sum all devices' addends everywhere: a ReduceScatter and an AllGather.

        Args:
            part: Gives this device's addend for a range of rows, each row once.
            bounds: Rows that each device sums.
            like: As in :meth:`reduce_scatter`.
        """
        return self.all_gather(self.reduce_scatter(part, bounds, like=like), bounds)

    def finish(self) -> None:
        """Wait until everything that was sent has left."""
        done: SimpleQueue[BaseException | None] = SimpleQueue()
        self._courier.carry(lambda: done.put(None), failed=done.put)
        self._got(done.get())

    def close(self) -> None:
        """End the ring's thread."""
        self._courier.close()

    def _messages(self, like: Tensor, bounds: Bounds, start: int, shards_n: int, sent_n: int) -> list[_Message]:
        """The pieces of so many shards, from one against the ring's direction, as messages after ``sent_n`` others."""
        shards = [(start - step) % self.size for step in range(shards_n)]
        pieces = [(shard, *piece) for shard in shards for piece in self._pieces(like, bounds, shard)]
        return [_Message(*piece, (sent_n + number) % _TAGS_N) for number, piece in enumerate(pieces)]

    def _pieces(self, like: Tensor, bounds: Bounds, shard: int) -> list[tuple[int, int]]:
        first, last = bounds[shard]
        row_bytes = like.element_size()
        for size in like.shape[1:]:
            row_bytes *= size
        pieces_n = min(_PIECES_N, max(1, (last - first) * row_bytes // _PIECE_BYTES), max(1, last - first))
        ranges = even_bounds(pieces_n, last - first)
        return [(first + low, first + high) for low, high in ranges if high > low and row_bytes > 0]

    def _send(self, tensor: Tensor, message: _Message) -> dist.Work:
        self.sent_bytes += tensor.nbytes
        return self.group.send([tensor], (self.position + 1) % self.size, message.tag)

    def _receive(self, tensor: Tensor, message: _Message) -> dist.Work:
        self.received_bytes += tensor.nbytes
        return self.group.recv([tensor], (self.position - 1) % self.size, message.tag)

    def _got(self, item: _Item | BaseException) -> _Item:
        """What the thread hands over, or raise what stopped it."""
        if isinstance(item, BaseException):
            with self.guard():
                raise item
        return item


class Courier:
    """A thread that carries out jobs in order. It ends with the process, whatever it waits for."""

    def __init__(self) -> None:
        self._jobs: SimpleQueue[tuple[Callable[[], None], Callable[[BaseException], None]] | None] = SimpleQueue()
        self._thread: threading.Thread | None = None

    def carry(self, job: Callable[[], None], *, failed: Callable[[BaseException], None]) -> None:
        """Carry a job out after those before it; ``failed`` gets what it raises."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="ring", daemon=True)
            self._thread.start()
        self._jobs.put((job, failed))

    def _run(self) -> None:
        while (entry := self._jobs.get()) is not None:
            job, failed = entry
            try:
                job()
            except BaseException as error:
                failed(error)

    def close(self) -> None:
        """End the thread after the jobs that it has."""
        self._jobs.put(None)
