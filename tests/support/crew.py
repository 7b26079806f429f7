"""Workers that are started by hand, one per device, as users start them on boards."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from work_folder import unreadable, until

from greentrain.files import read_json
from greentrain.ledger import read_ledger
from greentrain.summary import SUMMARY_SCHEMA, Summary

__all__ = ["Crew"]


@dataclass
class Crew:
    """Workers of one run, started by hand.

    Attributes:
        folder: The work folder.
        plan: Name of the plan's file, without its ending, and of the run.
        port: The coordinator's.
        rounds: Rounds of the run.
        processes: The worker of each device.
    """

    folder: Path
    plan: str
    port: int
    rounds: int
    processes: dict[str, subprocess.Popen[str]] = field(default_factory=dict[str, "subprocess.Popen[str]"])

    def start(self, device: str, *arguments: str) -> None:
        """Start a device's worker, or start it again."""
        log = (self.folder / f"{self.plan}.{device}.log").open("a")
        with log:
            self.processes[device] = subprocess.Popen(
                [
                    sys.executable, "-m", "greentrain.cli", "train", f"{self.plan}.json", "--as", device,
                    "--coordinator", f"127.0.0.1:{self.port}", "--run", self.plan, "--epochs", "100",
                    "--rounds", str(self.rounds), *arguments,
                ],
                cwd=self.folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log, text=True,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )  # fmt: skip

    def come_to(self, round_: int) -> None:
        """Wait until a round is done."""

        def there() -> bool:
            for path in (self.folder / "runs" / self.plan).glob("rank-*.ledger.csv"):
                rows = read_ledger(path, allow_cut=True)
                if any(row.step >= round_ - 1 for row in rows if row.action == "step"):
                    return True
            return False

        until(there, within_s=90)

    def signal(self, device: str, number: signal.Signals) -> None:
        """Send a signal to a worker."""
        self.processes[device].send_signal(number)

    def end(self, *devices: str) -> Summary:
        """Wait for these workers, all of which must end well."""
        for device in devices:
            assert self.processes[device].wait(timeout=90) == 0, self.said(device)
        assert not unreadable("".join(self.said(device) for device in devices))
        return read_json(self.folder / "runs" / self.plan / "summary.json", Summary, schema=SUMMARY_SCHEMA)

    def said(self, device: str) -> str:
        """What a worker has written."""
        return (self.folder / f"{self.plan}.{device}.log").read_text()

    def close(self) -> None:
        """End all workers."""
        for process in self.processes.values():
            process.kill()
            process.wait()
