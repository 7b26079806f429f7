"""Start one worker per device, watch them all, and end them all when one fails."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty, SimpleQueue

import msgspec

from greentrain.errors import RunError
from greentrain.runtime.worker import Progress

__all__ = ["WorkerCommand", "WorkerFailedError", "run_workers"]

# A worker that is asked to stop gets this long before it is killed.
_GRACE_S = 10.0
_POLL_S = 0.2
# Exit status by which the kernel (or a shell) reports a signal.
_PEER_LOST_EXIT = 5


@dataclass(frozen=True, kw_only=True)
class WorkerCommand:
    """How to start one device's worker.

    Attributes:
        device: Device id.
        argv: Command and arguments.
        env: Environment on top of this process's.
        log: File for what it says on stderr.
    """

    device: str
    argv: Sequence[str]
    env: Mapping[str, str]
    log: Path


class WorkerFailedError(RunError):
    """A worker ended before its work was done.

    Attributes:
        device: The worker that failed first.
    """

    def __init__(self, message: str, *, hint: str | None, device: str, exit_code: int) -> None:
        super().__init__(message, hint=hint)
        self.device = device
        self.exit_code = exit_code


@dataclass
class _Worker:
    command: WorkerCommand
    process: subprocess.Popen[str]
    ended_s: float | None = None
    lines: list[str] = field(default_factory=list[str])


def run_workers(commands: Sequence[WorkerCommand], report: Callable[[Progress], None]) -> None:
    """Run all workers to their end.

    Args:
        commands: One per device, rank 0 first.
        report: Called with every progress line of any worker.

    Raises:
        WorkerFailedError: One failed; the others were stopped within 10 s.
        KeyboardInterrupt: Passed on after all workers were stopped.
    """
    progress: SimpleQueue[Progress] = SimpleQueue()
    workers: list[_Worker] = []
    try:
        for command in commands:
            workers += [_start(command, progress)]
        while any(worker.process.poll() is None for worker in workers):
            _drain(progress, report)
            if any(worker.process.poll() not in (None, 0) for worker in workers):
                break
        # Peers of a dead worker fail within moments; waiting for them shows who died first.
        failed = [worker for worker in workers if worker.process.poll() not in (None, 0)]
        if failed:
            raise _failure(_culprit(workers))
        for item in _queued(progress):
            report(item)
    finally:
        _stop_all(workers)


def _start(command: WorkerCommand, progress: SimpleQueue[Progress]) -> _Worker:
    command.log.parent.mkdir(parents=True, exist_ok=True)
    with command.log.open("w", encoding="utf-8") as log:
        # A session of its own: Ctrl-C reaches this process only, which then stops its workers in order.
        process = subprocess.Popen(
            list(command.argv),
            env={**os.environ, **command.env},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            start_new_session=True,
        )
    worker = _Worker(command, process)
    threading.Thread(target=_read, args=(worker, progress), daemon=True).start()
    return worker


def _read(worker: _Worker, progress: SimpleQueue[Progress]) -> None:
    assert worker.process.stdout is not None
    for line in worker.process.stdout:
        with contextlib.suppress(msgspec.DecodeError, msgspec.ValidationError):
            progress.put(msgspec.json.decode(line, type=Progress))
    worker.process.wait()
    worker.ended_s = time.monotonic()


def _drain(progress: SimpleQueue[Progress], report: Callable[[Progress], None]) -> None:
    try:
        report(progress.get(timeout=_POLL_S))
    except Empty:
        return
    for item in _queued(progress):
        report(item)


def _queued(progress: SimpleQueue[Progress]) -> Iterator[Progress]:
    while True:
        try:
            yield progress.get_nowait()
        except Empty:
            return


def _culprit(workers: Sequence[_Worker]) -> _Worker:
    """The worker that failed of itself: killed by a signal, or with another status than "lost its peers"."""
    deadline_s = time.monotonic() + 2 * _POLL_S
    while time.monotonic() < deadline_s and any(worker.process.poll() is None for worker in workers):
        time.sleep(_POLL_S / 4)
    failed = [worker for worker in workers if worker.process.poll() not in (None, 0)]
    own_fault = [worker for worker in failed if worker.process.returncode != _PEER_LOST_EXIT]
    return min(own_fault or failed, key=lambda worker: worker.ended_s or time.monotonic())


def _failure(worker: _Worker) -> WorkerFailedError:
    code = worker.process.returncode
    device = worker.command.device
    # A shell or a namespace helper reports a signal as 128 + n.
    number = -code if code < 0 else code - 128 if code > 128 else 0
    if number:
        with contextlib.suppress(ValueError):
            name = signal.Signals(number).name
            return WorkerFailedError(
                f"the worker of {device} was killed ({name}).",
                hint=f"What it wrote is kept. If memory ran out, schedule with less of it; log: {worker.command.log}",
                device=device,
                exit_code=5,
            )
    message, hint = _last_error(worker.command.log)
    return WorkerFailedError(
        f"the worker of {device} failed: {message or f'exit status {code}'}",
        hint=hint or f"Log: {worker.command.log}",
        device=device,
        exit_code=code if code in (2, 3, 4, 5) else 5,
    )


def _last_error(log: Path) -> tuple[str | None, str | None]:
    """The last ``Error:`` line of a worker's log and the hint that follows it."""
    message = hint = None
    with contextlib.suppress(OSError):
        for line in log.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("Error: "):
                message, hint = line.removeprefix("Error: "), None
            elif line.startswith("Hint: "):
                hint = line.removeprefix("Hint: ")
    return message, hint


def _stop_all(workers: Sequence[_Worker]) -> None:
    for worker in workers:
        _signal(worker, signal.SIGTERM)
    deadline_s = time.monotonic() + _GRACE_S
    for worker in workers:
        with contextlib.suppress(subprocess.TimeoutExpired):
            worker.process.wait(timeout=max(deadline_s - time.monotonic(), 0.01))
    for worker in workers:
        _signal(worker, signal.SIGKILL)
        worker.process.wait()


def _signal(worker: _Worker, number: signal.Signals) -> None:
    """Signal a worker and everything it started."""
    if worker.process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(worker.process.pid, number)
