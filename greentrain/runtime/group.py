"""The process group of a run: rendezvous, handshake, groups of the stages, and what a lost peer looks like."""

from __future__ import annotations

import contextlib
import os
import re
import threading
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from queue import Empty, SimpleQueue
from typing import TypeVar

import torch
import torch.distributed as dist
from torch.distributed import PrefixStore, TCPStore  # pyright: ignore[reportPrivateImportUsage]

from greentrain.errors import RunError
from greentrain.plan import Plan
from greentrain.runtime.handshake import Hello, meet
from greentrain.runtime.links import UNWIND_S, Links, PeersLostError
from greentrain.runtime.messages import PEERS_LOST
from greentrain.runtime.network import address_towards, check_own_port, interface_of, wait_for_port

__all__ = ["Hello", "Links", "PeersLostError", "RunGroup", "form", "join", "open_store", "plain"]

_GATHER_TAG = 1 << 20
# Small enough that on a slow link every rank has its turn well within the message timeout.
_CHUNK_BYTES = 1 << 18
# The port is open already: a store answers at once.
_STORE_TIMEOUT_S = 8.0

T = TypeVar("T")


@dataclass
class RunGroup:
    """The joined ranks. Close it when the run ends, or when the members change.

    Attributes:
        rank: Rank of this process.
        device: Its device.
        ranks: Device id to rank.
        boards: Device id to its board.
        stage_group: Group of this rank's stage, for the gradient sum; None when it is alone.
        hellos: What every rank said at the start, by rank; empty when the members have changed since.
    """

    rank: int
    device: str
    ranks: Mapping[str, int]
    boards: Mapping[str, str]
    stage_group: dist.ProcessGroup | None
    _store: TCPStore
    _links: Links
    hellos: tuple[Hello, ...] = ()

    @property
    def leads_board(self) -> bool:
        """Whether this rank is the first of its board, the one whose meter counts."""
        own = self.boards[self.device]
        return self.rank == min(rank for device, rank in self.ranks.items() if self.boards[device] == own)

    @contextlib.contextmanager
    def talking(self) -> Generator[None, None, None]:
        """Around whatever talks to other ranks.

        Raises:
            PeersLostError: In place of gloo's error when a peer is gone or silent.
        """
        try:
            with self._links.waiting():
                yield
        except RuntimeError as error:
            raise PeersLostError(
                f"{self.device}: {PEERS_LOST} ({plain(error)}).",
                hint="What was written under the run's folder is kept; start the run again.",
            ) from error

    def apart(self, job: Callable[[], T]) -> T:
        """Do what talks to other ranks so that :meth:`abort` ends it for certain; see :meth:`Links.apart`.

        Raises:
            PeersLostError: It was given up, or a peer is gone.
        """
        return self._links.apart(job)

    def barrier(self) -> None:
        """Wait for every rank.

        Raises:
            PeersLostError: One is gone or silent.
        """
        with self.talking():
            dist.barrier()

    def gather_bytes(self, data: bytes) -> list[bytes]:
        """Send bytes of any length to rank 0. Call on all ranks; only rank 0 gets a non-empty list.

        The ranks take turns chunk by chunk: none is silent for as long as another's whole model takes.

        Raises:
            PeersLostError: A rank is gone or silent.
        """
        with self.talking():
            if self.rank == 0:
                return self._collect(data)
            dist.send(torch.tensor([len(data)], dtype=torch.int64), dst=0, tag=_GATHER_TAG)
            for start in range(0, len(data), _CHUNK_BYTES):
                chunk = torch.frombuffer(bytearray(data[start : start + _CHUNK_BYTES]), dtype=torch.uint8)
                dist.send(chunk, dst=0, tag=_GATHER_TAG + 1)
            return []

    def _collect(self, own: bytes) -> list[bytes]:
        sources = range(1, len(self.ranks))
        length = torch.tensor([0], dtype=torch.int64)
        whole: dict[int, torch.Tensor] = {}
        for source in sources:
            dist.recv(length, src=source, tag=_GATHER_TAG)
            whole[source] = torch.empty(int(length.item()), dtype=torch.uint8)
        for start in range(0, max((len(buffer) for buffer in whole.values()), default=0), _CHUNK_BYTES):
            for source, buffer in whole.items():
                if start < len(buffer):
                    dist.recv(buffer[start : start + _CHUNK_BYTES], src=source, tag=_GATHER_TAG + 1)
        return [own, *(whole[source].numpy().tobytes() for source in sources)]

    def abort(self) -> None:
        """End whatever this process waits for in gloo, at once. May be called from another thread, and again."""
        self._links.cut()

    def close(self) -> None:
        """Leave the group; a second call does nothing."""
        held = [dist.group.WORLD, self.stage_group]
        self.stage_group = None
        if dist.is_initialized():
            dist.destroy_process_group()
        # With its last owner a group waits for its own threads, of which one may hang in a message cut in two.
        dropping = threading.Thread(target=held.clear, name="gloo-end", daemon=True)
        dropping.start()
        dropping.join(timeout=UNWIND_S)
        self._links.close()


def join(
    plan: Plan,
    hello: Hello,
    *,
    host: str,
    port: int,
    join_timeout_s: float,
    message_timeout_s: float,
    reach_timeout_s: float | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> RunGroup:
    """Meet the other ranks, compare what each has, and make the groups. Call once on every rank.

    Args:
        plan: The plan; the position in ``plan.devices`` is the rank.
        hello: What this rank says of itself.
        host: Address of rank 0.
        port: Port of rank 0's store.
        join_timeout_s: Longest wait for all ranks to appear.
        message_timeout_s: Longest wait for a message during training.
        reach_timeout_s: Longest wait for rank 0 to listen; None: as long as for all ranks.
        say: Told who is missing.

    Raises:
        UsageError: A rank has another plan, model, data set or seed, or the address is not rank 0's.
        RunError: Not every rank appeared in time, or there is no route.
    """
    rank = plan.devices.index(hello.device)
    world = len(plan.devices)
    if rank == 0:
        own_address = check_own_port(host, port, device=hello.device)
    else:
        own_address = address_towards(host)
        wait_for_port(host, port, device=plan.devices[0], timeout_s=reach_timeout_s or join_timeout_s)
    interface = interface_of(own_address)
    if interface is not None:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
        os.environ.setdefault("TP_SOCKET_IFNAME", interface)
    links = Links()
    try:
        store = _open_store(host, port, world, rank)
        store.set_timeout(timedelta(seconds=message_timeout_s))
        hellos = meet(store, hello, plan.devices, timeout_s=join_timeout_s, say=say)
        group = form(plan, hello.device, store, links, boards={found.device: found.board for found in hellos},
            generation=0, timeout_s=message_timeout_s,
        )  # fmt: skip
    except RuntimeError as error:
        raise PeersLostError(
            f"{hello.device}: {PEERS_LOST} while all met at {host}:{port} ({plain(error)}).",
            hint="Check that every device of the plan runs its worker and reaches that address.",
        ) from error
    group.hellos = hellos
    return group


def form(
    plan: Plan, device: str, store: TCPStore, links: Links, *, boards: Mapping[str, str], generation: int,
    timeout_s: float,
) -> RunGroup:  # fmt: skip
    """Make the groups of a plan. Call once on every rank, with the leader's store.

    Args:
        plan: The plan; the position in ``plan.devices`` is the rank.
        device: This device.
        store: The leader's store.
        links: Made before the store was opened.
        boards: Device id to its board.
        generation: How often the members have changed.
        timeout_s: Longest wait for a message.

    Raises:
        RuntimeError: A peer is gone (from torch).
    """
    timeout = timedelta(seconds=timeout_s)
    rank = plan.devices.index(device)
    dist.init_process_group(
        "gloo",
        store=PrefixStore(f"generation-{generation}", store),
        rank=rank,
        world_size=len(plan.devices),
        timeout=timeout,
    )
    stage_group = _stage_group(plan, rank, timeout)
    links.seal()
    ranks = {name: index for index, name in enumerate(plan.devices)}
    return RunGroup(rank, device, ranks, boards, stage_group, store, links)


def open_store(host: str, port: int, *, leads: bool, timeout_s: float) -> TCPStore:
    """The leader's store of a new generation, on a port of its own; the leader opens it before it tells the others.

    Raises:
        RuntimeError: The leader is gone (from torch).
    """
    store = TCPStore(
        host, port, None, leads, timeout=timedelta(seconds=_STORE_TIMEOUT_S / 2), wait_for_workers=False
    )  # fmt: skip
    store.set_timeout(timedelta(seconds=timeout_s))
    return store


def _open_store(host: str, port: int, world: int, rank: int) -> TCPStore:
    """Rank 0's store. What listens there may be no store at all, and then torch may wait for ever.

    Raises:
        RunError: It did not answer as a store does.
    """
    opened: SimpleQueue[TCPStore] = SimpleQueue()

    def connect() -> None:
        # Without an answer in the queue the reason does not matter.
        with contextlib.suppress(RuntimeError):
            timeout = timedelta(seconds=_STORE_TIMEOUT_S / 2)
            opened.put(TCPStore(host, port, world, rank == 0, timeout=timeout, wait_for_workers=False))

    threading.Thread(target=connect, daemon=True).start()
    try:
        return opened.get(timeout=_STORE_TIMEOUT_S)
    except Empty as error:
        raise RunError(
            f"what answers at {host}:{port} is no greentrain worker.",
            hint="Give the address at which the worker of the plan's first device listens.",
        ) from error


def _stage_group(plan: Plan, rank: int, timeout: timedelta) -> dist.ProcessGroup | None:
    own = None
    # new_group is collective: every rank makes every group, in the same order.
    for stage in plan.stages:
        if len(stage.devices) > 1:
            members = [plan.devices.index(device) for device in stage.devices]
            group = dist.new_group(members, timeout=timeout)
            if rank in members and isinstance(group, dist.ProcessGroup):
                own = group
    return own


def plain(error: Exception) -> str:
    """The first sentence of an error from C++, without source places and stack."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    sentence = re.sub(r"^\[[^\]]*\.(cc|cpp|h):\d+\]\s*", "", lines[0])
    return sentence.partition(". ")[0].rstrip(".")[:160]
