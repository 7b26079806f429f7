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
from collections.abc import Callable, Mapping, Sequence
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
    _errors: list[BaseException] = field(default_factory=list[BaseException])
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
        arrivals = self._arrivals(whole, incoming, receives, onward, sends)
        works = list(meanwhile)
        # This device's own rows first, then what comes, in the order in which it comes.
        if use is not None and self.overlap and last > first:
            use(first, last, whole[first:last])
        for message in incoming:
            while self.overlap and works and arrivals.late:
                works.pop(0)()
            self._got(arrivals.next())
            if use is not None and self.overlap:
                use(message.first, message.last, whole[message.first : message.last])
        if use is not None and not self.overlap:
            use(0, whole.shape[0], whole)
        for work in works:
            work()
        return whole

    def _arrivals(
        self,
        whole: Tensor,
        incoming: Sequence[_Message],
        receives: Sequence[dist.Work],
        onward: Mapping[tuple[int, int], _Message],
        sends: list[dist.Work],
    ) -> _Arrivals:
        """Wait for the pieces: in the ring's thread where they must be passed on at once, else when one is wanted."""

        def carry() -> None:
            for message, receive in zip(incoming, receives, strict=True):
                receive.wait()
                passed = onward.get((message.first, message.last))
                if passed is not None:
                    sends.append(self._send(whole[passed.first : passed.last], passed))
                arrivals.there.put(None)
            for send in sends:
                send.wait()

        passes_on = self.size > 2
        arrivals = _Arrivals(receives=() if passes_on else receives)
        if passes_on:
            self._courier.carry(carry, failed=arrivals.there.put)
        else:
            self._leave([(send, whole) for send in sends])
        return arrivals

    def _leave(self, sends: Sequence[tuple[dist.Work, Tensor]]) -> None:
        """Keep what is sent until it has left."""

        def wait() -> None:
            for send, _ in sends:
                send.wait()

        self._courier.carry(wait, failed=self._errors.append)

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
        outgoing = self._messages(like, bounds, self.position - 1, self.size - 1, self._sent_n)
        incoming = self._messages(like, bounds, self.position - 2, self.size - 1, self._received_n)
        self._sent_n += len(outgoing)
        self._received_n += len(incoming)
        buffers = [like.new_empty((message.last - message.first, *like.shape[1:])) for message in incoming]
        with self.guard():
            receives = [self._receive(buffer, message) for buffer, message in zip(buffers, incoming, strict=True)]
        before = {
            (message.first, message.last): _Earlier(receive, buffer)
            for message, receive, buffer in zip(incoming, receives, buffers, strict=True)
        }
        # A group of one has nothing to send, but its own rows.
        order: list[tuple[int, int, _Message | None]] = [(found.first, found.last, found) for found in outgoing]
        order += [(*piece, None) for piece in self._pieces(like, bounds, self.position)]
        first, last = bounds[self.position]
        scatter = _Scatter(self._send, order, before, like.new_empty((last - first, *like.shape[1:])), first)
        # Sums of two devices go no further: nobody waits for them while there is something to compute.
        passes_on = self.size > 2
        if passes_on:
            self._courier.carry(scatter.carry, failed=scatter.summed.put)
        self._give(scatter, part, at_once=not passes_on)
        works = list(meanwhile)
        while works and not (passes_on and self.overlap and not scatter.summed.empty()):
            works.pop(0)()
        if passes_on:
            self._got(scatter.summed.get())
        else:
            self._leave(scatter.sends)
            with self.guard():
                scatter.pass_on()
        for work in works:
            work()
        return scatter.result

    def _give(self, scatter: _Scatter, part: Callable[[int, int], Tensor], *, at_once: bool) -> None:
        """Compute the addends in order; those that need no other's are sent from here (``at_once``)."""
        try:
            addends = ((message, part(start, stop).detach().contiguous()) for start, stop, message in scatter.order)
            for message, addend in addends if self.overlap else list(addends):
                if at_once and message is not None:
                    with self.guard():
                        scatter.sends.append((self._send(addend, message), addend))
                else:
                    scatter.parts.put(addend)
        except BaseException:
            scatter.parts.put(None)
            raise
        if at_once:
            scatter.order = [entry for entry in scatter.order if entry[2] is None]

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
        for error in self._errors:
            self._got(error)

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


class _Earlier(NamedTuple):
    """The sum of the devices before this one, on its way, and where it is written."""

    receive: dist.Work
    buffer: Tensor


@dataclass
class _Scatter:
    """A ReduceScatter: addends in the order in which they leave, the last ones to stay.

    Attributes:
        send: Sends a sum on.
        order: First row, one past the last, and the message that they leave in; None: they stay.
        before: What comes in for rows.
        result: Sums of own rows.
        first: Their first in the whole.
        parts: Addends in that order; None: there will be no more.
        summed: Gets something when all sums are there.
        sends: What leaves, and its memory.
    """

    send: Callable[[Tensor, _Message], dist.Work]
    order: list[tuple[int, int, _Message | None]]
    before: Mapping[tuple[int, int], _Earlier]
    result: Tensor
    first: int
    parts: SimpleQueue[Tensor | None] = field(default_factory=lambda: SimpleQueue["Tensor | None"]())
    summed: SimpleQueue[BaseException | None] = field(default_factory=lambda: SimpleQueue["BaseException | None"]())
    sends: list[tuple[dist.Work, Tensor]] = field(default_factory=list[tuple["dist.Work", Tensor]])

    def pass_on(self) -> None:
        """Add what comes to each addend, and send the sums on or keep them."""
        for start, stop, message in self.order:
            addend = self.parts.get()
            if addend is None:
                return
            total = self._total(start, stop, addend, stays=message is None)
            if message is not None:
                self.sends.append((self.send(total, message), total))
        self.summed.put(None)

    def carry(self) -> None:
        """The same in the ring's thread, which waits until all has left."""
        self.pass_on()
        for send, _ in self.sends:
            send.wait()

    def _total(self, start: int, stop: int, addend: Tensor, *, stays: bool) -> Tensor:
        own = self.result[start - self.first : stop - self.first]
        earlier = self.before.get((start, stop))
        if earlier is None:
            return own.copy_(addend) if stays else addend
        earlier.receive.wait()
        return torch.add(earlier.buffer, addend, out=own if stays else earlier.buffer)


@dataclass
class _Arrivals:
    """Pieces that come, in order: what the ring's thread says of each, or the receives themselves."""

    receives: Sequence[dist.Work]
    there: SimpleQueue[BaseException | None] = field(default_factory=lambda: SimpleQueue["BaseException | None"]())
    _number: int = 0

    @property
    def late(self) -> bool:
        """Whether the next one is not known to be there."""
        return self.there.empty()

    def next(self) -> BaseException | None:
        """Wait for the next one; what stopped it."""
        if not self.receives:
            return self.there.get()
        self._number += 1
        try:
            self.receives[self._number - 1].wait()
        except RuntimeError as error:
            return error
        return None


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
