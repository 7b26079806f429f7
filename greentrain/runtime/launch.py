"""Start one worker per device and watch them all; end them all when one fails that the others cannot do without."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import IO

import msgspec

from greentrain.errors import RunError
from greentrain.files import writing
from greentrain.runtime.lifeline import LAUNCHED
from greentrain.runtime.messages import PEERS_LOST, Progress

__all__ = ["WorkerCommand", "WorkerFailedError", "run_workers"]

# A worker that is asked to stop gets this long before it is killed.
_GRACE_S = 10.0
# When peers are lost, the one that all wait for shows itself within this time.
_SETTLE_S = 3.0
_POLL_S = 0.2
_KEPT_LINES = 200


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
    readers: list[threading.Thread] = field(default_factory=list[threading.Thread])
    # The last lines it said; its log may be on a full disk.
    said: deque[str] = field(default_factory=lambda: deque[str](maxlen=_KEPT_LINES))

    @property
    def runs(self) -> bool:
        """Whether it has not ended."""
        return self.process.poll() is None

    @property
    def failed(self) -> bool:
        """Whether it ended badly."""
        return self.process.poll() not in (None, 0)

    @property
    def finished(self) -> bool:
        """Whether it ended well."""
        return self.process.poll() == 0

    def last_error(self) -> tuple[str | None, str | None]:
        """The last ``Error:`` line that it said and the hint that follows it. Call when it has ended."""
        for reader in self.readers:
            reader.join(timeout=1.0)
        message = hint = None
        for line in tuple(self.said):
            if line.startswith("Error: "):
                message, hint = line.removeprefix("Error: "), None
            elif line.startswith("Hint: "):
                hint = line.removeprefix("Hint: ")
        return message, hint

    def lost_peers(self) -> bool:
        """Whether it failed only because another did."""
        return self.process.returncode == RunError.exit_code and PEERS_LOST in (self.last_error()[0] or "")


def run_workers(
    commands: Sequence[WorkerCommand],
    report: Callable[[Progress], None],
    *,
    lost: Callable[[str], None] | None = None,
) -> None:
    """Run all workers to their end.

    Args:
        commands: One per device, rank 0 first.
        report: Called with every progress line of any worker.
        lost: Told of a worker that failed while the others go on without it. None: one failure ends all.

    Raises:
        WorkerFailedError: One failed before the first round, or none could go on; the others were stopped.
        KeyboardInterrupt: Passed on after all workers were stopped.
    """
    progress: SimpleQueue[Progress] = SimpleQueue()
    workers: list[_Worker] = []
    with _lifeline() as read_end:
        try:
            for command in commands:
                workers += [_start(command, progress, read_end)]
            _watch(workers, progress, report, lost)
            for worker in workers:
                for reader in worker.readers:
                    reader.join(timeout=1.0)
            for item in _queued(progress):
                report(item)
        finally:
            _stop_all(workers)


def _watch(
    workers: Sequence[_Worker], progress: SimpleQueue[Progress], report: Callable[[Progress], None],
    lost: Callable[[str], None] | None,
) -> None:  # fmt: skip
    """Wait until all have ended, or those that still train.

    Raises:
        WorkerFailedError: Some failed, and none goes on or finished.
    """
    begun = False
    told: set[str] = set()
    finished_s: float | None = None
    while any(worker.runs for worker in workers):
        begun = _drain(progress, report) or begun
        failed = [worker for worker in workers if worker.failed]
        if failed and (lost is None or not begun):
            raise _failure(workers)
        if lost is not None and len(failed) < len(workers):
            for worker in failed:
                if worker.command.device not in told:
                    told.add(worker.command.device)
                    lost(_own_failure(worker).message)
        if finished_s is None and any(worker.finished for worker in workers):
            finished_s = time.monotonic()
        if lost is not None and finished_s is not None and time.monotonic() - finished_s > _GRACE_S:
            # The others end together: who does not is frozen.
            for worker in workers:
                if worker.runs:
                    lost(f"the worker of {worker.command.device} did not answer in the end and was killed.")
                    _signal(worker, signal.SIGKILL)
    if not any(worker.finished for worker in workers) or (lost is None and any(worker.failed for worker in workers)):
        raise _failure(workers)


@contextlib.contextmanager
def _lifeline() -> Generator[int, None, None]:
    """The read end of a pipe whose write end nobody else holds; see :mod:`greentrain.runtime.lifeline`."""
    read_end, write_end = os.pipe()
    try:
        yield read_end
    finally:
        os.close(read_end)
        os.close(write_end)


def _start(command: WorkerCommand, progress: SimpleQueue[Progress], read_end: int) -> _Worker:
    with writing(command.log):
        command.log.parent.mkdir(parents=True, exist_ok=True)
        log = command.log.open("wb", buffering=0)
    try:
        # A session of its own: Ctrl-C reaches this process only, which then stops its workers in order.
        process = subprocess.Popen(
            list(command.argv),
            env={**os.environ, **command.env, LAUNCHED: "1"},
            stdin=read_end,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,
        )
    except OSError as error:
        log.close()
        raise RunError(
            f"the worker of {command.device} cannot be started ({error.strerror}: {command.argv[0]}).",
            hint="Is memory or the number of processes exhausted?",
        ) from error
    worker = _Worker(command, process)
    for target, arguments in ((_read, (worker, progress)), (_keep, (worker, log))):
        worker.readers.append(threading.Thread(target=target, args=arguments, daemon=True))
    for reader in worker.readers:
        reader.start()
    return worker


def _read(worker: _Worker, progress: SimpleQueue[Progress]) -> None:
    assert worker.process.stdout is not None
    with worker.process.stdout as lines:
        for line in lines:
            with contextlib.suppress(msgspec.DecodeError):
                progress.put(msgspec.json.decode(line, type=Progress))
    worker.process.wait()
    worker.ended_s = time.monotonic()


def _keep(worker: _Worker, log: IO[bytes]) -> None:
    """Copy what a worker says to its log, and remember the end of it."""
    assert worker.process.stderr is not None
    with worker.process.stderr as lines:
        for line in lines:
            worker.said.append(line.rstrip("\n"))
            # A full disk must neither stop the worker nor hide its last words.
            with contextlib.suppress(OSError):
                log.write(line.encode())
    with contextlib.suppress(OSError):
        log.close()


def _drain(progress: SimpleQueue[Progress], report: Callable[[Progress], None]) -> bool:
    """Pass on what has come; whether there was any."""
    try:
        report(progress.get(timeout=_POLL_S))
    except Empty:
        return False
    for item in _queued(progress):
        report(item)
    return True


def _queued(progress: SimpleQueue[Progress]) -> Iterator[Progress]:
    while True:
        try:
            yield progress.get_nowait()
        except Empty:
            return


def _failure(workers: Sequence[_Worker]) -> WorkerFailedError:
    """What went wrong first: peers of a dead or silent worker fail too, within moments."""
    deadline_s = time.monotonic() + _SETTLE_S
    while True:
        failed = [worker for worker in workers if worker.failed]
        own_fault = [worker for worker in failed if not worker.lost_peers()]
        silent = [worker for worker in workers if worker.runs]
        if own_fault or not silent or time.monotonic() >= deadline_s:
            break
        time.sleep(_POLL_S / 4)
    first = min(own_fault or failed, key=lambda worker: worker.ended_s or time.monotonic())
    if silent and not own_fault:
        names = ", ".join(worker.command.device for worker in silent)
        return WorkerFailedError(
            f"the worker of {names} does not answer: {first.last_error()[0]}",
            hint=f"Is that device asleep, stopped or off the network? Log: {silent[0].command.log}.",
            device=silent[0].command.device,
            exit_code=RunError.exit_code,
        )
    return _own_failure(first)


def _own_failure(worker: _Worker) -> WorkerFailedError:
    code = worker.process.returncode
    device = worker.command.device
    # A shell or a namespace helper reports a signal as 128 + n.
    number = -code if code < 0 else code - 128 if code > 128 else 0
    if number:
        with contextlib.suppress(ValueError):
            name = signal.Signals(number).name
            return WorkerFailedError(
                f"the worker of {device} was killed ({name}).",
                hint=f"What it wrote is kept. If memory ran out, schedule with less of it. Log: {worker.command.log}.",
                device=device,
                exit_code=RunError.exit_code,
            )
    message, hint = worker.last_error()
    return WorkerFailedError(
        f"the worker of {device} failed: {message or f'exit status {code}.'}",
        hint=hint or f"Log: {worker.command.log}.",
        device=device,
        exit_code=code if code in (2, 3, 4, 5) else RunError.exit_code,
    )


def _stop_all(workers: Sequence[_Worker]) -> None:
    for worker in workers:
        _signal(worker, signal.SIGTERM)
        # A stopped process takes no other signal before it goes on.
        _signal(worker, signal.SIGCONT)
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
