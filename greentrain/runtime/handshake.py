"""The handshake before the first tensor: every rank compares what it has with what rank 0 has.

A mismatch between peers ends a process from C++, or trains nonsense; here it becomes one sentence that
names both devices. All of it goes through rank 0's store, and every wait is bounded and announced.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import msgspec
from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]

from greentrain.errors import RunError, UsageError
from greentrain.power import Source
from greentrain.reading import Clock, Scope

__all__ = ["Hello", "difference_of", "meet"]

_POLL_S = 0.2
# Who is missing is said after the first of these, then at intervals of the second.
_FIRST_NEWS_S = 5.0
_NEWS_EVERY_S = 30.0

_REFUSED = "refused"


class Hello(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a rank says of itself before the first tensor.

    Attributes:
        device: Its device id.
        plan_sha256: Hash of the plan file's content.
        structure_sha256: Hash of the model that it has built.
        data: Name, size and shapes of its data set.
        settings: Seed, epochs and rounds: what else decides the samples of a round.
        torch: Version of torch.
        board: Ranks on one board share its meter.
        control: ``HOST:PORT`` of its control plane; empty without one.
        meter: Name and note of its meter.
        source: Of its joules.
        scope: Of its meter.
    """

    device: str
    plan_sha256: str
    structure_sha256: str
    data: str
    settings: str = ""
    torch: str
    board: str
    control: str = ""
    meter: str = "none"
    source: Source = "modelled"
    scope: Scope = "process"


def meet(
    store: TCPStore,
    hello: Hello,
    devices: Sequence[str],
    *,
    timeout_s: float,
    say: Callable[[str], None],
    clock: Clock = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> tuple[Hello, ...]:
    """Exchange hellos. Call once on every rank; all come to the same verdict.

    Args:
        store: Rank 0's store.
        hello: What this rank says of itself.
        devices: The plan's devices by rank.
        timeout_s: Longest wait for all ranks to appear.
        say: Told who is missing.
        clock: Monotonic seconds.
        sleep: Waits.

    Returns:
        What every rank said, by rank.

    Raises:
        UsageError: A rank has something else than rank 0, or a device has two workers.
        RunError: Not every rank appeared in time.
        RuntimeError: The store is gone (from torch).
    """
    rank = devices.index(hello.device)
    waiting = _Waiting(store, devices, timeout_s=timeout_s, say=say, clock=clock, sleep=sleep)
    if rank > 0:
        waiting.for_ranks([0])
        difference = difference_of(_hello_of(store, 0), hello)
        if difference is None and store.add(f"claimed/{rank}", 1) > 1:
            difference = f"device {hello.device} has two workers.", "Start one worker per device."
        if difference is not None:
            store.set(_REFUSED, msgspec.json.encode(difference).decode())
            raise UsageError(difference[0], hint=difference[1])
    store.set(f"hello/{rank}", msgspec.json.encode(hello).decode())
    waiting.for_ranks(range(len(devices)))
    return tuple(_hello_of(store, other) for other in range(len(devices)))


class _Waiting:
    """Waits until ranks have said hello, or one of them was refused."""

    def __init__(
        self, store: TCPStore, devices: Sequence[str], *, timeout_s: float, say: Callable[[str], None], clock: Clock,
        sleep: Callable[[float], None],
    ) -> None:  # fmt: skip
        self._store = store
        self._devices = devices
        self._timeout_s = timeout_s
        self._say = say
        self._clock = clock
        self._sleep = sleep
        self._start_s = clock()
        self._news_s = self._start_s + _FIRST_NEWS_S

    def for_ranks(self, ranks: Sequence[int]) -> None:
        """Wait for these ranks' hellos."""
        missing = list(ranks)
        while True:
            self._stop_if_refused()
            missing = [rank for rank in missing if not self._store.check([f"hello/{rank}"])]
            if not missing:
                return
            self._tell([self._devices[rank] for rank in missing])
            self._sleep(_POLL_S)

    def _stop_if_refused(self) -> None:
        if self._store.check([_REFUSED]):
            # Rank 0 takes the store with it: the others get the time to read the verdict too.
            self._sleep(5 * _POLL_S)
            message, hint = msgspec.json.decode(self._store.get(_REFUSED), type=tuple[str, str])
            raise UsageError(message, hint=hint)

    def _tell(self, missing: Sequence[str]) -> None:
        now_s = self._clock()
        if now_s - self._start_s > self._timeout_s:
            raise RunError(
                f"no worker of {', '.join(missing)} appeared in {self._timeout_s:.0f} s.",
                hint="Check that every device of the plan runs its worker with the same --coordinator.",
            )
        if now_s >= self._news_s:
            self._say(f"Waiting for the worker of {', '.join(missing)} …")
            self._news_s = now_s + _NEWS_EVERY_S


def _hello_of(store: TCPStore, rank: int) -> Hello:
    try:
        return msgspec.json.decode(store.get(f"hello/{rank}"), type=Hello)
    except msgspec.MsgspecError as error:
        raise UsageError(
            f"rank {rank} speaks another version of the protocol ({error}).",
            hint="Install the same version of greentrain on every device.",
        ) from error


def difference_of(first: Hello, other: Hello) -> tuple[str, str] | None:
    """What another rank has differently from rank 0, as a sentence and a hint; None when they agree."""
    for field, what, cure in (
        ("plan_sha256", "plan", "Copy the same plan file to every device"),
        ("structure_sha256", "model", "Install the same versions of the model's code on every device"),
        ("data", "data set", "Copy the same data to every device"),
        ("settings", "settings", "Give every worker the same --seed, --epochs, --rounds, --compress and --precision"),
    ):
        one, two = str(getattr(first, field)), str(getattr(other, field))
        if one != two:
            shown = (one[:12], two[:12]) if field.endswith("sha256") else (one, two)
            return (
                f"{other.device} has {what} {shown[1]}, but {first.device} has {what} {shown[0]}.",
                f"{cure}, then start all workers again.",
            )
    return None
