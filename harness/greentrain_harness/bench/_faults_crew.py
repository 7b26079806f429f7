"""Workers of one run in a lab, one per node, as the faults' benchmark starts, watches and harms them."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

import msgspec

from greentrain.errors import RunError
from greentrain.runtime.lifeline import LAUNCHED
from greentrain.runtime.messages import Progress
from greentrain.runtime.network import free_port
from greentrain_harness.lab import Lab, exec_argv
from greentrain_harness.lab.cgroups import processes

__all__ = ["FAULTS", "Crew", "Fault", "Seen", "Span", "told_change"]

Fault = Literal["kill", "freeze", "link"]
FAULTS: tuple[Fault, ...] = ("kill", "freeze", "link")

# Importing torch on a node with a small quota takes most of a minute on a busy machine.
START_S = 180.0
_POLL_S = 0.2


class Seen(NamedTuple):
    """A line of progress: when it came, on the monotonic clock, and what it said."""

    t_s: float
    progress: Progress


class Span(NamedTuple):
    """Descriptors and threads of a process."""

    descriptors_n: int
    threads_n: int


@dataclass
class Crew:
    """The workers. A context manager: none outlives it.

    Attributes:
        lab: Where they run.
        folder: The work folder.
        plan: Name of the plan's file in it.
        devices: The plan's devices by rank.
        run: Name of the run.
        options: Further options of ``greentrain train``.
        seen: All progress so far, of all workers.
    """

    lab: Lab
    folder: Path
    plan: str
    devices: Sequence[str]
    run: str
    options: Sequence[str]
    seen: list[Seen] = field(default_factory=list[Seen])
    _processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict[str, "subprocess.Popen[bytes]"])
    _all: list[subprocess.Popen[bytes]] = field(default_factory=list["subprocess.Popen[bytes]"])
    _frozen: set[str] = field(default_factory=set[str])
    _cut: set[str] = field(default_factory=set[str])
    _news: threading.Condition = field(default_factory=threading.Condition)
    _port: int = field(default_factory=free_port)
    _lifeline: tuple[int, int] = field(default_factory=os.pipe)

    def __enter__(self) -> Crew:
        for device in self.devices:
            self.start(device)
        return self

    def __exit__(self, *_: object) -> None:
        for device in tuple(self._cut):
            self.mend("link", device)
        for process in self._all:
            process.kill()
            process.wait()
        for end in self._lifeline:
            os.close(end)

    def start(self, device: str) -> None:
        """Start a device's worker, for the first time or again."""
        address = f"{self.lab.node(self.devices[0]).address}:{self._port}"
        argv, env = exec_argv(
            self.lab, device,
            [
                sys.executable, "-m", "greentrain.cli", "train", self.plan, "--as", device, "--coordinator", address,
                "--run", self.run, "--epochs", "100000", "--replan", "off", *self.options,
            ],
        )  # fmt: skip
        with self._log(device).open("ab") as log:
            process = subprocess.Popen(
                argv, cwd=self.folder, env={**os.environ, **env, LAUNCHED: "1"}, stdin=self._lifeline[0],
                stdout=subprocess.PIPE, stderr=log,
            )  # fmt: skip
        self._processes[device] = process
        self._all.append(process)
        threading.Thread(target=self._read, args=(process,), daemon=True).start()

    def harm(self, fault: Fault, device: str) -> None:
        """Do it."""
        if fault == "link":
            self._cut.add(device)
            self._link(device, "down")
        elif fault == "freeze":
            self._frozen.add(device)
            self._processes[device].send_signal(signal.SIGSTOP)
        else:
            self._processes[device].kill()
            self._processes[device].wait()

    def mend(self, fault: Fault, device: str) -> None:
        """Undo it: a killed worker is started again."""
        if fault == "link":
            self._link(device, "up")
            self._cut.discard(device)
        elif fault == "freeze":
            self._processes[device].send_signal(signal.SIGCONT)
            self._frozen.discard(device)
        else:
            self.start(device)

    def await_seen(self, wanted: Callable[[Seen], bool], *, since: int = 0, within_s: float) -> Seen | None:
        """Wait for a line of progress; None when it does not come, or all workers have ended.

        Args:
            wanted: Which one.
            since: Look from this one on.
            within_s: Longest wait.
        """
        deadline_s = time.monotonic() + within_s
        looked_at = since
        while True:
            with self._news:
                for seen in self.seen[looked_at:]:
                    if wanted(seen):
                        return seen
                looked_at = len(self.seen)
                if time.monotonic() > deadline_s or not self.running():
                    return None
                self._news.wait(timeout=_POLL_S)

    def await_round(self, number: int) -> Seen:
        """Wait until so many rounds are done.

        Raises:
            RunError: They are not, and why.
        """
        found = self.await_seen(
            lambda seen: seen.progress.event is None and seen.progress.step >= number, within_s=START_S
        )
        if found is None:
            raise RunError(f"{self.run}: round {number} was not reached: {self.last_words()}")
        return found

    @property
    def reached(self) -> int:
        """Rounds that were told to be done."""
        return max((seen.progress.step for seen in self.seen if seen.progress.event is None), default=0)

    def running(self) -> tuple[str, ...]:
        """Devices whose worker runs, or is frozen."""
        return tuple(device for device, process in self._processes.items() if process.poll() is None)

    def await_end(self, devices: Sequence[str], *, within_s: float) -> dict[str, int | None]:
        """Exit status of these workers; None where one has not ended in time."""
        deadline_s = time.monotonic() + within_s
        for device in devices:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._processes[device].wait(timeout=max(deadline_s - time.monotonic(), 0.01))
        return {device: self._processes[device].poll() for device in devices}

    def stop(self, devices: Sequence[str]) -> None:
        """End these workers in order, as a launcher does, and wait for them."""
        for device in devices:
            self._processes[device].terminate()
        self.await_end(devices, within_s=10.0)
        for device in devices:
            self._processes[device].kill()
            self._processes[device].wait()

    def pid(self, device: str) -> int:
        """Process id of a device's worker."""
        return self._processes[device].pid

    def span(self, device: str) -> Span:
        """What a worker has open."""
        place = Path("/proc", str(self.pid(device)))
        return Span(len(list((place / "fd").iterdir())), len(list((place / "task").iterdir())))

    def losses(self) -> dict[int, float]:
        """Loss by round, counted from 1, as last told; a reporter that was lost may have left some out."""
        return {
            seen.progress.step: seen.progress.loss
            for seen in self.seen
            if seen.progress.event is None and seen.progress.loss is not None
        }

    def left_over(self) -> tuple[int, ...]:
        """Processes that are in the nodes though every worker has ended."""
        return processes(folder for node in self.lab.nodes for folder in node.cgroup.folders)

    def last_words(self) -> str:
        """The last error of each worker."""
        found: list[str] = []
        for device in self.devices:
            lines = self._log(device).read_text(errors="replace").splitlines() if self._log(device).exists() else []
            found += [f"{device}: {line[:200]}" for line in lines if line.startswith("Error")][-1:]
        return "; ".join(found) or "no worker says why"

    def _log(self, device: str) -> Path:
        return self.folder / f"{self.run}.{device}.log"

    def _link(self, device: str, state: str) -> None:
        namespace = self.lab.node(device).namespace
        subprocess.run(["ip", "-n", namespace, "link", "set", "eth0", state], check=True, capture_output=True)

    def _read(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        with process.stdout as lines:
            for line in lines:
                t_s = time.monotonic()
                with contextlib.suppress(msgspec.DecodeError):
                    progress = msgspec.json.decode(line, type=Progress)
                    with self._news:
                        self.seen.append(Seen(t_s, progress))
                        self._news.notify_all()


def told_change(seen: Seen, device: str, what: str) -> bool:
    """Whether a line tells that a device was lost or has joined: ``a, b lost and c joined; …``."""
    event = (seen.progress.event or "").partition(";")[0]
    return any(
        part.endswith(f" {what}") and device in part.removesuffix(f" {what}").split(", ")
        for part in event.split(" and ")
    )
