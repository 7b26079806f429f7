"""A ring in one process: every member a thread with a gloo group of its own."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import timedelta
from typing import TypeVar, cast

from torch.distributed import HashStore, ProcessGroup, ProcessGroupGloo  # pyright: ignore[reportPrivateImportUsage]

from greentrain.runtime.collectives import Ring

_Result = TypeVar("_Result")


def on_ring(size: int, work: Callable[[Ring], _Result], *, timeout_s: float = 20.0) -> list[_Result]:
    """Run the same work on every member of a ring; results by position."""
    store = HashStore()
    results: dict[int, _Result] = {}
    errors: list[BaseException] = []
    # Nobody leaves while another still waits for its rows.
    everyone = threading.Barrier(size)

    def member(position: int) -> None:
        try:
            group = ProcessGroupGloo(store, position, size, timedelta(seconds=timeout_s))
            ring = Ring(cast("ProcessGroup", group))
            results[position] = work(ring)
            everyone.wait(timeout=30)
            ring.close()
        except BaseException as error:
            everyone.abort()
            errors.append(error)

    threads = [threading.Thread(target=member, args=(position,), daemon=True) for position in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=40)
    for error in errors:
        if not isinstance(error, threading.BrokenBarrierError):
            raise error
    return [results[position] for position in range(size)]
