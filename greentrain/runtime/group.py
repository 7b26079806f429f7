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

import torch
import torch.distributed as dist
from torch.distributed import PrefixStore, TCPStore  # pyright: ignore[reportPrivateImportUsage]

from greentrain.errors import RunError
from greentrain.plan import Plan
from greentrain.runtime.handshake import Hello, meet
from greentrain.runtime.messages import PEERS_LOST
from greentrain.runtime.network import address_towards, check_own_port, interface_of, wait_for_port

__all__ = ["Hello", "PeersLostError", "RunGroup", "join", "plain"]

_GATHER_TAG = 1 << 20
# Small enough that on a slow link every rank has its turn well within the message timeout.
_CHUNK_BYTES = 1 << 18
# The port is open already: a store answers at once.
_STORE_TIMEOUT_S = 8.0


class PeersLostError(RunError):
    """Another rank is gone or silent. Which one, and why, is known there and to the launcher."""


@dataclass
class RunGroup:
    """The joined ranks. Close it when the run ends.

    Attributes:
        rank: Rank of this process.
        ranks: Device id to rank.
        hellos: What every rank said, by rank.
        stage_group: Group of this rank's stage, for the gradient sum; None when it is alone.
    """

    rank: int
    ranks: Mapping[str, int]
    hellos: tuple[Hello, ...]
    stage_group: dist.ProcessGroup | None
    _store: TCPStore

    @property
    def leads_board(self) -> bool:
        """Whether this rank is the first of its board, the one whose meter counts."""
        board = self.hellos[self.rank].board
        return self.rank == min(rank for rank, hello in enumerate(self.hellos) if hello.board == board)

    @contextlib.contextmanager
    def talking(self) -> Generator[None, None, None]:
        """Around whatever talks to other ranks.

        Raises:
            PeersLostError: In place of gloo's error when a peer is gone or silent.
        """
        try:
            yield
        except RuntimeError as error:
            raise PeersLostError(
                f"{self.hellos[self.rank].device}: {PEERS_LOST} ({plain(error)}).",
                hint="What was written under the run's folder is kept; start the run again.",
            ) from error

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
        sources = range(1, len(self.hellos))
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

    def close(self) -> None:
        """Leave the group; a second call does nothing."""
        if dist.is_initialized():
            dist.destroy_process_group()


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
    timeout = timedelta(seconds=message_timeout_s)
    try:
        store = _open_store(host, port, world, rank)
        store.set_timeout(timeout)
        hellos = meet(store, hello, plan.devices, timeout_s=join_timeout_s, say=say)
        dist.init_process_group(
            "gloo",
            store=PrefixStore("generation-0", store),
            rank=rank,
            world_size=world,
            timeout=timeout,
        )
        stage_group = _stage_group(plan, rank, timeout)
    except RuntimeError as error:
        raise PeersLostError(
            f"{hello.device}: {PEERS_LOST} while all met at {host}:{port} ({plain(error)}).",
            hint="Check that every device of the plan runs its worker and reaches that address.",
        ) from error
    ranks = {device: index for index, device in enumerate(plan.devices)}
    return RunGroup(rank=rank, ranks=ranks, hellos=hellos, stage_group=stage_group, _store=store)


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
