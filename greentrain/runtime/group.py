"""The process group of a run: rendezvous, handshake before the first tensor, groups of the stages."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta

import msgspec
import torch
import torch.distributed as dist
from torch.distributed import PrefixStore, TCPStore  # pyright: ignore[reportPrivateImportUsage]

from greentrain.errors import RunError, UsageError
from greentrain.plan import Plan
from greentrain.runtime.network import address_towards, interface_of

__all__ = ["Hello", "RunGroup", "join"]

_GATHER_TAG = 1 << 20


class Hello(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a rank says of itself before the first tensor.

    Attributes:
        device: Its device id.
        plan_sha256: Hash of the plan file's content.
        structure_sha256: Hash of the model that it has built.
        data: Name, size and shapes of its data set.
        torch: Version of torch.
        board: Ranks on one board share its meter.
    """

    device: str
    plan_sha256: str
    structure_sha256: str
    data: str
    torch: str
    board: str


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

    def barrier(self) -> None:
        """Wait for every rank."""
        dist.barrier()

    def gather_bytes(self, data: bytes) -> list[bytes]:
        """Send bytes of any length to rank 0. Call on all ranks; only rank 0 gets a non-empty list."""
        length = torch.tensor([len(data)], dtype=torch.int64)
        if self.rank != 0:
            dist.send(length, dst=0, tag=_GATHER_TAG)
            if data:
                dist.send(torch.frombuffer(bytearray(data), dtype=torch.uint8), dst=0, tag=_GATHER_TAG + 1)
            return []
        gathered = [data]
        for source in range(1, len(self.hellos)):
            dist.recv(length, src=source, tag=_GATHER_TAG)
            buffer = torch.empty(int(length.item()), dtype=torch.uint8)
            if len(buffer):
                dist.recv(buffer, src=source, tag=_GATHER_TAG + 1)
            gathered.append(buffer.numpy().tobytes())
        return gathered

    def close(self) -> None:
        """Leave the group; a second call does nothing."""
        if dist.is_initialized():
            dist.destroy_process_group()


def join(
    plan: Plan, hello: Hello, *, host: str, port: int, join_timeout_s: float, message_timeout_s: float
) -> RunGroup:
    """Meet the other ranks, compare what each has, and make the groups. Call once on every rank.

    Args:
        plan: The plan; the position in ``plan.devices`` is the rank.
        hello: What this rank says of itself.
        host: Address of rank 0.
        port: Port of rank 0's store.
        join_timeout_s: Longest wait for all ranks to appear.
        message_timeout_s: Longest wait for a message during training.

    Raises:
        UsageError: A rank has another plan, model or data set.
        RunError: Not every rank appeared in time, or there is no route.
    """
    rank = plan.devices.index(hello.device)
    world = len(plan.devices)
    own_address = host if rank == 0 else address_towards(host)
    interface = interface_of(own_address)
    if interface is not None:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
        os.environ.setdefault("TP_SOCKET_IFNAME", interface)
    timeout = timedelta(seconds=join_timeout_s)
    try:
        store = TCPStore(host, port, world, rank == 0, timeout=timeout, wait_for_workers=False)
        hellos = _exchange(store, hello, rank, plan)
        _compare(hellos)
        dist.init_process_group(
            "gloo",
            store=PrefixStore("generation-0", store),
            rank=rank,
            world_size=world,
            timeout=timedelta(seconds=message_timeout_s),
        )
    except (RuntimeError, dist.DistError) as error:
        raise RunError(
            f"{hello.device}: the ranks could not meet at {host}:{port} in {join_timeout_s:.0f} s ({_first(error)}).",
            hint="Check that every device of the plan runs its worker and reaches that address.",
        ) from error
    stage_group = None
    # new_group is collective: every rank makes every group, in the same order.
    for stage in plan.stages:
        if len(stage.devices) > 1:
            members = [plan.devices.index(device) for device in stage.devices]
            group = dist.new_group(members, timeout=timedelta(seconds=message_timeout_s))
            if rank in members and isinstance(group, dist.ProcessGroup):
                stage_group = group
    ranks = {device: index for index, device in enumerate(plan.devices)}
    return RunGroup(rank=rank, ranks=ranks, hellos=hellos, stage_group=stage_group, _store=store)


def _exchange(store: TCPStore, hello: Hello, rank: int, plan: Plan) -> tuple[Hello, ...]:
    store.set(f"hello/{rank}", msgspec.json.encode(hello).decode())
    hellos: list[Hello] = []
    for other, device in enumerate(plan.devices):
        found = msgspec.json.decode(store.get(f"hello/{other}"), type=Hello)
        if found.device != device:
            raise UsageError(f"rank {other} is device {found.device!r}, the plan expects {device!r}.")
        hellos.append(found)
    return tuple(hellos)


def _compare(hellos: tuple[Hello, ...]) -> None:
    """Every rank must have what rank 0 has; every rank comes to the same verdict."""
    first = hellos[0]
    for other in hellos[1:]:
        for field, what in (("plan_sha256", "plan"), ("structure_sha256", "model"), ("data", "data set")):
            mine, theirs = str(getattr(first, field)), str(getattr(other, field))
            if mine != theirs:
                raise UsageError(
                    f"{other.device} has {what} {theirs[:40]}, {first.device} has {mine[:40]}.",
                    hint=f"Copy the same {what} to every device and start again.",
                )


def _first(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:160] if str(error).strip() else type(error).__name__
