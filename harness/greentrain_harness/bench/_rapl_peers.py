"""RAPL counters read side by side: by this package, and by other tools as they are.

All of them know only /sys: each runs in a mount namespace of its own (root) in which the same emulated counters lie
at /sys/class/powercap. The counters rest while windows open and close and run in between, so that the truth is one
number for everybody, whatever the instants of their windows.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from pathlib import Path

from greentrain_harness.meters.trees import RaplTree, write_rapl_tree

__all__ = ["PACKAGE", "RaplPeer", "RaplReading", "compare_rapl", "rapl_peers"]

PACKAGE, DRAM = "package-0", "dram"

_ZONES = {"intel-rapl:0": PACKAGE, "intel-rapl:0:0": DRAM}
_RANGE_UJ = 262_143_328_850
_POWER_W = {PACKAGE: 40.0, DRAM: 5.0}
_STEP_S = 0.005
_READY_S, _ANSWER_S = 30.0, 20.0

# Machines without RAPL have no /sys/class/powercap to mount over, and sysfs makes no folder: then /sys/class itself
# is put together anew.
_ENTER = """
set -e
if [ ! -d /sys/class/powercap ]; then
  stage="$TREE/class"; mkdir -p "$stage"; mount -t tmpfs none "$stage"
  for entry in /sys/class/*; do
    name="${entry##*/}"; mkdir "$stage/$name"; mount --rbind "$entry" "$stage/$name"
  done
  mkdir "$stage/powercap"; mount --rbind "$stage" /sys/class
fi
mount --bind "$TREE/sys/class/powercap" /sys/class/powercap
exec "$@"
"""

# What a tool prints of its own accord goes to stderr.
_PROLOGUE = """
import json, os, sys, time
tell = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)
"""

# Each opens its window, says so, waits for a line, closes the window and says its joules.
_OURS = """
from greentrain_harness.window import measure
with measure(device="cpu") as window:
    print("ready", file=tell, flush=True); sys.stdin.readline()
said = {name.removeprefix("package-0-"): energy_j for name, energy_j in window.channels.items()}
print(json.dumps(said), file=tell, flush=True)
"""

_CODECARBON = """
import warnings
warnings.simplefilter("ignore")
from codecarbon import OfflineEmissionsTracker
tracker = OfflineEmissionsTracker(
    country_iso_code="FRA", save_to_file=False, log_level="critical", allow_multiple_runs=True
)
tracker.start()
print("ready", file=tell, flush=True); sys.stdin.readline()
tracker.stop()
print(json.dumps({"package-0": tracker.final_emissions_data.cpu_energy * 3.6e6}), file=tell, flush=True)
"""

_ZEUS = """
from zeus.monitor import ZeusMonitor
monitor = ZeusMonitor(gpu_indices=[], cpu_indices=[0])
monitor.begin_window("w")
time.sleep(3.0)  # its helper processes start up
print("ready", file=tell, flush=True); sys.stdin.readline()
seen = monitor.end_window("w")
print(json.dumps({"package-0": seen.cpu_energy[0], "dram": (seen.dram_energy or {}).get(0)}), file=tell, flush=True)
"""


@dataclass(frozen=True)
class RaplPeer:
    """A tool that reads RAPL.

    Attributes:
        name: Shown in the table.
        python: The Python that has it.
        code: Opens a window, prints ``ready``, waits for a line and prints joules by zone.
    """

    name: str
    python: str
    code: str


@dataclass(frozen=True, kw_only=True)
class RaplReading:
    """What a tool said of the same counters.

    Attributes:
        name: The tool.
        truth_j: Joules by zone that the counters really advanced.
        energy_j: Joules by zone; None where it gives none.
        fault: Why it gave nothing at all; empty otherwise.
    """

    name: str
    truth_j: Mapping[str, float]
    energy_j: Mapping[str, float | None]
    fault: str = ""

    def error_j(self, zone: str) -> float | None:
        """How far a zone's joules are from the truth; None when it gave none."""
        energy_j = self.energy_j.get(zone)
        return None if energy_j is None else abs(energy_j - self.truth_j[zone])


def rapl_peers(*, codecarbon: str | None = None, zeus: str | None = None) -> tuple[RaplPeer, ...]:
    """This package, and the tools whose Python is given."""
    others = (("codecarbon", codecarbon, _CODECARBON), ("zeus", zeus, _ZEUS))
    known = [RaplPeer(name, python, code) for name, python, code in others if python is not None]
    return (RaplPeer("ours", sys.executable, _OURS), *known)


def compare_rapl(
    folder: Path, peers: tuple[RaplPeer, ...], *, seconds: float = 1.5, wraps: bool = False
) -> list[RaplReading]:
    """Let the counters run once while every tool has a window open. Needs root and ``unshare``.

    Args:
        folder: For the emulated tree.
        peers: Who reads.
        seconds: How long the counters run.
        wraps: The package's counter wraps in the middle.
    """
    tree = write_rapl_tree(folder, list(_ZONES.items()), range_uj=_RANGE_UJ)
    _nest(folder / "sys/class/powercap")
    half_uj = round(_POWER_W[PACKAGE] * seconds / 2 * 1e6)
    start_uj = {PACKAGE: _RANGE_UJ - half_uj if wraps else 1_000_000, DRAM: 7_000_000}
    _advance(tree, start_uj, 0.0)
    with contextlib.ExitStack() as stack:
        started = [(peer, stack.enter_context(_running(peer, folder))) for peer in peers]
        ready = [(peer, process, _line(process, _READY_S) == "ready") for peer, process in started]
        begin_s = time.monotonic()
        while (elapsed_s := time.monotonic() - begin_s) < seconds:
            _advance(tree, start_uj, elapsed_s)
            time.sleep(_STEP_S)
        _advance(tree, start_uj, seconds)
        truth_j = {zone: power_w * seconds for zone, power_w in _POWER_W.items()}
        return [_reading(peer, process, truth_j, folder, ready=was_ready) for peer, process, was_ready in ready]


def _nest(powercap: Path) -> None:
    """The kernel's second view of the zones, which some tools walk: ``intel-rapl/<zone>/<part of it>``."""
    parent = powercap / "intel-rapl"
    parent.mkdir(exist_ok=True)
    links = {parent / "subsystem": "..", parent / "intel-rapl:0": "../intel-rapl:0"}
    links[powercap / "intel-rapl:0/intel-rapl:0:0"] = "../intel-rapl:0:0"
    for link, target in links.items():
        if not link.is_symlink():
            link.symlink_to(target)


def _advance(tree: RaplTree, start_uj: Mapping[str, int], elapsed_s: float) -> None:
    for folder, zone in _ZONES.items():
        tree.set_energy_uj(folder, (start_uj[zone] + round(_POWER_W[zone] * elapsed_s * 1e6)) % _RANGE_UJ)


@contextlib.contextmanager
def _running(peer: RaplPeer, folder: Path) -> Generator[subprocess.Popen[str], None, None]:
    # A home of its own: what a tool remembers of this machine must not decide.
    home = folder / f"home-{peer.name}"
    home.mkdir(exist_ok=True)
    ranks = ("LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_RANK", "SLURM_LOCALID", "GREENTRAIN_SYSROOT")
    environment = {name: value for name, value in os.environ.items() if name not in ranks}
    with (home / "stderr").open("w") as errors:
        process = subprocess.Popen(
            [
                "unshare", "-m", "--propagation", "private", "bash", "-c", _ENTER, "_",
                peer.python, "-c", _PROLOGUE + peer.code,
            ],
            env={**environment, "TREE": str(folder.resolve()), "HOME": str(home)}, cwd=home, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, start_new_session=True,
        )  # fmt: skip
    try:
        yield process
    finally:
        # Some tools start helper processes, which would outlive them.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
        process.wait()


def _line(process: subprocess.Popen[str], timeout_s: float) -> str:
    """The next line that a tool prints; empty when it ends or stays silent."""
    assert process.stdout is not None
    if not select.select([process.stdout], [], [], timeout_s)[0]:
        return ""
    return process.stdout.readline().strip()


def _reading(
    peer: RaplPeer, process: subprocess.Popen[str], truth_j: Mapping[str, float], folder: Path, *, ready: bool
) -> RaplReading:
    said = ""
    if ready and process.stdin is not None:
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write("\n")
            process.stdin.flush()
            said = _line(process, _ANSWER_S)
    if not said.startswith("{"):
        lines = (folder / f"home-{peer.name}/stderr").read_text(errors="replace").strip().splitlines()
        return RaplReading(name=peer.name, truth_j=truth_j, energy_j={}, fault=lines[-1] if lines else "no answer")
    return RaplReading(name=peer.name, truth_j=truth_j, energy_j=json.loads(said))
