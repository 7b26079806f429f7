"""Copies of what only one device holds, renewed now and then.

A stage on one device is copied to the next stage's first device; what travels is read from the disk and written to it
in parts of some rounds. Where a group shares work inside a sample its devices hold parts of every layer: they exchange
them, layer after layer, so that each keeps the whole layers. Every device keeps its own tensors of the same round too,
so that all can go back to it together.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from math import ceil, sqrt
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from greentrain.cluster import Cluster
from greentrain.parallel.data import slowest_link
from greentrain.plan import Plan
from greentrain.runtime.copies import Copies, Copy, Shelf
from greentrain.runtime.group import RunGroup
from greentrain.runtime.split_weights import gather_named
from greentrain.runtime.states import State, decode, encode

__all__ = ["Backups", "Taken", "backup_period", "copy_energy_j", "needs_backups"]

_TAG = 1 << 22
_PARTS_TAG = _TAG + (1 << 16)
_MOST_ROUNDS = 1000

# A device's present tensors of a layer, or of all of its stage (None).
Taken = Callable[[int | None], State]


def needs_backups(plan: Plan) -> bool:
    """Whether something is on one device only, and there is another that can keep a copy."""
    alone = len(plan.stages) > 1 and any(len(stage.devices) == 1 for stage in plan.stages)
    return alone or any(stage.sharing != "samples" for stage in plan.stages)


def keepers(plan: Plan) -> dict[int, str]:
    """Who keeps the copy of each stage with one device: the next stage's first device; of the last, the first's."""
    return {
        index: plan.stages[(index + 1) % len(plan.stages)].devices[0]
        for index, stage in enumerate(plan.stages)
        if len(stage.devices) == 1 and len(plan.stages) > 1
    }


def copy_energy_j(plan: Plan, cluster: Cluster, *, states_n: int, round_j: float, round_s: float) -> float:
    """Joules of one renewal of all copies: their bytes on the links, and the cluster's power while they travel.

    Args:
        plan: The plan.
        cluster: Its links.
        states_n: Optimizer state in multiples of the weights.
        round_j: Joules of a round.
        round_s: Seconds of a round.
    """
    total_j = 0.0
    for index, keeper in keepers(plan).items():
        stage = plan.stages[index]
        size = stage.param_bytes * (1 + states_n)
        link = cluster.link(stage.devices[0], keeper)
        total_j += size * (link.tx_j_per_byte + link.rx_j_per_byte)
        total_j += link.transfer_s(size) * round_j / round_s
    for stage in plan.stages:
        if stage.sharing != "samples":
            # Each device sends its part to all others.
            others_n = len(stage.devices) - 1
            size = stage.param_bytes * (1 + states_n)
            links = [cluster.link(src, dst) for src in stage.devices for dst in stage.devices if src != dst]
            total_j += others_n * size * max(link.tx_j_per_byte + link.rx_j_per_byte for link in links)
            bandwidth, _, shared = slowest_link(cluster, stage.devices)
            sent_s = others_n * size / bandwidth / (1 if shared else len(stage.devices))
            total_j += sent_s * round_j / round_s
    return total_j


def backup_period(copy_j: float, round_j: float, losses_per_round: float) -> int:
    """Rounds between copies with the least expected joules.

    A round costs ``copy_j / N`` for copies and ``losses_per_round · N/2 · round_j`` for rounds that are done again:
    least at ``N = sqrt(2·copy_j / (losses_per_round · round_j))``, Young's interval (CACM 17(9), 1974) in joules.
    """
    if losses_per_round <= 0 or round_j <= 0:
        return _MOST_ROUNDS
    return min(max(round(sqrt(2 * copy_j / (losses_per_round * round_j))), 1), _MOST_ROUNDS)


@dataclass
class _Flow:
    """A copy on its way, part by part.

    Attributes:
        shelf: Where it is read from, or written to.
        size: Bytes in all.
        part_bytes: Bytes of a part; the last one may be smaller.
        done: Bytes that have travelled.
        part: The part on its way.
        work: Its message.
    """

    shelf: Shelf
    size: int
    part_bytes: int
    done: int = 0
    part: Tensor | None = None
    work: dist.Work | None = None

    @property
    def next_bytes(self) -> int:
        """Bytes of the part that comes next."""
        return min(self.part_bytes, self.size - self.done)


@dataclass
class Backups:
    """One device's part in the copies of one generation.

    At its first round and every ``period`` rounds all keep their present tensors; a stage with one device sends its
    copy over the first half of the following period, a part before each round, so that no message of a round waits
    behind a whole copy.

    Attributes:
        plan: The plan.
        device: This device.
        group: The joined ranks.
        copies: Where copies are kept.
        period: Rounds between copies.
        folder: On the disk that they go to.
        first_round: Of the run: what is there before it can be made again.
    """

    plan: Plan
    device: str
    group: RunGroup
    copies: Copies
    period: int
    folder: Path
    first_round: int = 0
    _stage: int = field(init=False)
    _keeps_of: int | None = field(init=False, default=None)
    _begun: list[int] = field(default_factory=list[int])
    _out: _Flow | None = None
    _in: _Flow | None = None

    def __post_init__(self) -> None:
        self._stage = next(index for index, stage in enumerate(self.plan.stages) if self.device in stage.devices)
        for index, keeper in keepers(self.plan).items():
            if keeper == self.device:
                self._keeps_of = index

    @property
    def _parts_n(self) -> int:
        return max(ceil(self.period / 2), 1)

    def before_round(self, done: int, taken: Taken) -> int:
        """Go on with the copies; call on every rank before each round, with how many are done.

        Args:
            done: Rounds whose update has been applied.
            taken: Gives the tensors that this device trains.

        Returns:
            Bytes that were sent and received.

        Raises:
            PeersLostError: A peer is gone or silent.
        """
        with self.group.talking():
            moved = self._finish_parts()
            if not self._begun or done - self._begun[-1] >= self.period:
                moved += self._begin(done, taken)
            self._start_parts()
        return moved

    def _begin(self, done: int, taken: Taken) -> int:
        stage = self.plan.stages[self._stage]
        # The one before may not have arrived everywhere yet; then those who keep less could not go back as far.
        self._begun = [*self._begun[-2:], done]
        whole_n = 2 if self._parts_n < self.period else 3
        self.copies.drop(before=self._begun[-whole_n:][0])
        own = Copy(stage.start, stage.stop, done, Shelf(self.folder))
        moved = 0
        if stage.sharing == "samples":
            own.write(taken(None))
            self.copies.kept.append(own)
        elif done > self.first_round:
            moved = self._exchange(own, taken)
            self.copies.kept.append(own)
        keeper = keepers(self.plan).get(self._stage)
        length = torch.zeros(1, dtype=torch.int64)
        work = None
        if keeper is not None:
            length[0] = own.shelf.size
            work = dist.isend(length, dst=self.group.ranks[keeper], tag=_TAG + self._stage)
            self._out = self._flow(own.shelf, own.shelf.size)
        if self._keeps_of is not None:
            given = torch.zeros(1, dtype=torch.int64)
            dist.recv(given, src=self._source(), tag=_TAG + self._keeps_of)
            self._in = self._flow(Shelf(self.folder), int(given.item()))
        if work is not None:
            work.wait()
        return moved

    def _exchange(self, copy: Copy, taken: Taken) -> int:
        """Fill a copy with whole layers, of which each device of the stage has parts; returns the bytes that moved."""
        others = [self.group.ranks[name] for name in self.plan.stages[self._stage].devices if name != self.device]
        moved = 0
        for layer in range(copy.start, copy.stop):
            data = encode(taken(layer))
            own = torch.frombuffer(bytearray(data), dtype=torch.uint8)
            length = torch.tensor([len(data)], dtype=torch.int64)
            sends = [dist.isend(part, dst=other, tag=_PARTS_TAG) for other in others for part in (length, own)]
            shards = [data]
            for other in others:
                given = torch.zeros(1, dtype=torch.int64)
                dist.recv(given, src=other, tag=_PARTS_TAG)
                shard = torch.empty(int(given.item()), dtype=torch.uint8)
                dist.recv(shard, src=other, tag=_PARTS_TAG)
                shards.append(shard.numpy().tobytes())
            for send in sends:
                assert send is not None
                send.wait()
            copy.write(gather_named(map(decode, shards)))
            moved += len(data) * len(others) + sum(map(len, shards[1:]))
        return moved

    def _flow(self, shelf: Shelf, size: int) -> _Flow:
        return _Flow(shelf, size, max(ceil(size / self._parts_n), 1))

    def _source(self) -> int:
        assert self._keeps_of is not None
        return self.group.ranks[self.plan.stages[self._keeps_of].devices[0]]

    def _start_parts(self) -> None:
        if self._out is not None:
            flow = self._out
            flow.part = flow.shelf.read(flow.done, flow.done + flow.next_bytes)
            keeper = self.group.ranks[keepers(self.plan)[self._stage]]
            flow.work = dist.isend(flow.part, dst=keeper, tag=_TAG + self._stage)
        if self._in is not None:
            flow = self._in
            flow.part = torch.empty(flow.next_bytes, dtype=torch.uint8)
            flow.work = dist.irecv(flow.part, src=self._source(), tag=_TAG + (self._keeps_of or 0))

    def _finish_parts(self) -> int:
        moved = 0
        for flow in (self._out, self._in):
            if flow is not None and flow.work is not None:
                assert flow.part is not None
                flow.work.wait()
                if flow is self._in:
                    flow.shelf.append(flow.part.numpy().data)
                moved += len(flow.part)
                flow.done += len(flow.part)
                flow.work = flow.part = None
        if self._out is not None and self._out.done == self._out.size:
            self._out = None
        if self._in is not None and self._in.done == self._in.size:
            assert self._keeps_of is not None
            stage = self.plan.stages[self._keeps_of]
            self.copies.kept.append(Copy(stage.start, stage.stop, self._begun[-1], self._in.shelf))
            self._in = None
        return moved
