"""What gloo has open, and how to come out of it: it cannot be asked to stop."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Callable, Generator
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import NoReturn, TypeVar

import torch

from greentrain.errors import RunError
from greentrain.runtime.control import PRIORITY
from greentrain.runtime.messages import PEERS_LOST

__all__ = ["UNWIND_S", "Links", "PeersLostError"]

# Whoever waits in gloo comes out so soon after a cut, or only with the timeout.
UNWIND_S = 0.1

T = TypeVar("T")


class PeersLostError(RunError):
    """Another rank is gone or silent. Which one, and why, is known there and to the launcher."""


class Links:
    """The network connections that gloo and its store open from now on, until :meth:`seal`.

    gloo waits for a message as long as its timeout says and cannot be asked to stop. When the connection ends it gives
    up what it waits for, but not a message that was half through: whoever waits for that one must be left behind
    (:meth:`apart`). So what it has open is remembered, and shut from outside.
    """

    def __init__(self) -> None:
        self._before = frozenset(_descriptors())
        self._own: frozenset[str] | None = None
        self._news = threading.Condition()
        self._is_cut = False
        self._waiting_n = 0
        self._jobs: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._thread: threading.Thread | None = None

    def seal(self) -> None:
        """All are open: what is opened later belongs to others."""
        self._own = frozenset(_descriptors()) - self._before

    def cut(self) -> None:
        """Shut all of them."""
        for name, descriptor in _descriptors().items():
            if name not in self._before and (self._own is None or name in self._own):
                with contextlib.suppress(OSError):
                    _shut(name, os.dup(descriptor))
        with self._news:
            self._is_cut = True
            self._news.notify_all()

    @contextlib.contextmanager
    def waiting(self) -> Generator[None, None, None]:
        """Around calls of gloo, in which a thread may be left behind.

        Raises:
            RuntimeError: After :meth:`cut`, also where gloo had what it needed: nobody goes on from here.
        """
        with self._news:
            self._waiting_n += 1
            self._news.notify_all()
        try:
            yield
        finally:
            with self._news:
                self._waiting_n -= 1
                self._news.notify_all()
        if self._is_cut:
            raise RuntimeError("the connections were cut")

    def apart(self, job: Callable[[], T]) -> T:
        """Do something on a thread of its own, which is left behind when it hangs in gloo after :meth:`cut`.

        What it computes is waited for: only in gloo it can hang. What ``job`` does after a call of gloo has failed must
        touch nothing that is used again.

        Raises:
            PeersLostError: It was left behind.
        """
        ends: list[Callable[[], T]] = []

        def work() -> None:
            try:
                result = job()
            except BaseException as error:
                end = partial(_raised, error)
            else:
                end = partial(_given, result)
            with self._news:
                ends.append(end)
                self._news.notify_all()

        if self._thread is None:
            self._thread = threading.Thread(
                target=self._run, args=(torch.get_num_threads(),), name="rounds", daemon=True
            )
            self._thread.start()
        self._jobs.put(work)
        with self._news:
            self._news.wait_for(lambda: ends or self._is_cut)
            while not ends:
                self._news.wait_for(lambda: ends or self._waiting_n > 0)
                if not self._news.wait_for(lambda: ends or self._waiting_n == 0, timeout=UNWIND_S):
                    raise PeersLostError(f"{PEERS_LOST} (a message was cut in two).")
        return ends[0]()

    def close(self) -> None:
        """End the thread, when it comes back."""
        self._jobs.put(None)

    def joined(self, *, timeout_s: float) -> bool:
        """Whether the thread has ended after :meth:`close`, or ends in time."""
        if self._thread is not None:
            self._thread.join(timeout=timeout_s)
        return self._thread is None or not self._thread.is_alive()

    def _run(self, threads_n: int) -> None:
        torch.set_num_threads(threads_n)  # Each thread has a number of its own.
        while (job := self._jobs.get()) is not None:
            job()


def _given(result: T) -> T:
    return result


def _raised(error: BaseException) -> NoReturn:
    raise error


def _descriptors() -> dict[str, int]:
    """Name (with the inode number) to descriptor of all sockets of this process."""
    found: dict[str, int] = {}
    listed = Path("/proc/self/fd")
    for descriptor in listed.iterdir() if listed.exists() else ():
        with contextlib.suppress(OSError):
            found[str(descriptor.readlink())] = int(descriptor.name)
    return {name: descriptor for name, descriptor in found.items() if name.startswith("socket:")}


def _shut(name: str, copy: int) -> None:
    """Shut a connection by a copy of its descriptor, which another socket may have taken meanwhile."""
    try:
        same = str(Path(f"/proc/self/fd/{copy}").readlink()) == name
        connection = socket.socket(fileno=os.dup(copy)) if same else None
    finally:
        os.close(copy)
    if connection is not None:
        with connection:
            if _is_gloo(connection):
                connection.shutdown(socket.SHUT_RDWR)


def _is_gloo(connection: socket.socket) -> bool:
    """Not a listener, on which gloo ends the process, and not of the control plane."""
    if connection.family not in (socket.AF_INET, socket.AF_INET6):
        return False
    listens = connection.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    return not listens and connection.getsockopt(socket.SOL_SOCKET, socket.SO_PRIORITY) != PRIORITY
