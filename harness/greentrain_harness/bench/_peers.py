"""Other tools, unmodified, on the same emulated trees: zeus and jtop on Jetson rails, zeus and codecarbon on RAPL.

They know only /sys, so that the tree is mounted over it in a mount namespace of its own (root). zeus is told
that the processor is a Jetson's; nothing else of it is touched.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

from greentrain_harness.bench._jtop_peer import jtop_says
from greentrain_harness.bench._rapl_peers import compare_rapl, rapl_peers
from greentrain_harness.meters import open_named
from greentrain_harness.meters.boards import BOARDS
from greentrain_harness.meters.trees import write_jetson_tree

__all__ = ["peer_rows"]

_TOTAL_W = 12.0
_TIMEOUT_S = 60.0

# Module and package of the other tools.
_PEERS = {"zeus": "zeus", "codecarbon": "codecarbon", "jtop": "jtop (jetson-stats)"}

# Mounts the emulated folders over /sys, and an /etc that names a Jetson, then runs the peer.
_ENTER = """
set -e
mount -t tmpfs none /sys/bus
cp -a /etc "$TREE/etc-of-peer"; touch "$TREE/etc-of-peer/nv_tegra_release"; mount --bind "$TREE/etc-of-peer" /etc
mkdir -p /sys/bus/i2c/drivers; mount --bind "$TREE/sys/bus/i2c/drivers" /sys/bus/i2c/drivers
exec "$@"
"""

_ZEUS_JETSON = """
import json, platform, time
platform.processor = lambda: "aarch64"
from zeus.device.soc.jetson import Jetson
soc = Jetson()
soc.begin_window("w"); start = time.monotonic(); time.sleep(1.0)
seen = soc.end_window("w"); seconds = time.monotonic() - start
fields = ("total_energy_mj", "cpu_energy_mj", "gpu_energy_mj")
print(json.dumps({name: getattr(seen, name, None) for name in fields} | {"seconds": seconds}))
soc._stop_process()
"""


def peer_rows(pythons: Sequence[str], folder: Path) -> Iterator[tuple[str, str]]:
    """What another tool says, or why it could not be asked; pairs of what and figure.

    Args:
        pythons: Pythons that have the peers.
        folder: For the emulated trees.
    """
    having = {module: _having(pythons, module) for module in _PEERS}
    for module, package in _PEERS.items():
        if having[module] is None:
            yield package, "not installed"
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        yield "other tools on emulated trees", "not run: needs root and unshare"
        return
    yield from _rapl_rows(having["codecarbon"], having["zeus"], folder)
    if having["zeus"] is None and having["jtop"] is None:
        return
    for board in BOARDS:
        for driver in board.drivers:
            name = f"{board.name} ({driver}) at {_TOTAL_W:g} W"
            tree = folder / f"{board.name}-{driver}"
            write_jetson_tree(tree, board, driver=driver, total_w=_TOTAL_W)
            yield f"{name}: ours", _ours(tree)
            if having["zeus"] is not None:
                yield f"{name}: zeus", _zeus(having["zeus"], tree)
            # Its stand-in for /sys covers the newer driver of the INA3221.
            if having["jtop"] is not None and driver == "hwmon" and {rail.chip for rail in board.rails} == {"ina3221"}:
                yield f"{name}: jtop", jtop_says(tree / "jtop", having["jtop"], board, total_w=_TOTAL_W)


def _rapl_rows(codecarbon: str | None, zeus: str | None, folder: Path) -> Iterator[tuple[str, str]]:
    """RAPL counters once as they are and once with a wrap in the middle; nothing where no tool is installed."""
    if codecarbon is None and zeus is None:
        return
    for wraps in (False, True):
        tree = folder / f"rapl-{wraps}"
        for reading in compare_rapl(tree, rapl_peers(codecarbon=codecarbon, zeus=zeus), wraps=wraps):
            said = "; ".join(
                f"{zone} {energy_j:.4f} of {reading.truth_j[zone]:g} J"
                for zone, energy_j in reading.energy_j.items()
                if energy_j is not None
            )
            yield f"RAPL{' that wraps' if wraps else ''}: {reading.name}", said or f"failed: {reading.fault[:60]}"


def _ours(tree: Path) -> str:
    meter = open_named("jetson", sysroot=tree)
    values = zip(meter.channels, meter.sample().values, strict=True)
    total_w = sum(value or 0.0 for channel, value in values if channel.parent is None)
    meter.close()
    return f"total {total_w:.2f} W"


def _zeus(python: str, tree: Path) -> str:
    try:
        done = subprocess.run(
            ["unshare", "-m", "--propagation", "private", "bash", "-c", _ENTER, "_", python, "-c", _ZEUS_JETSON],
            env={**os.environ, "TREE": str(tree)}, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return f"hung for {_TIMEOUT_S:g} s"
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if not lines:
        return f"failed: {(done.stderr.strip().splitlines() or ['no output'])[-1][:60]}"
    seen = json.loads(lines[-1])
    said = [
        f"{name.partition('_')[0]} {seen[name] / 1e3 / seen['seconds']:.2f} W"
        for name in ("total_energy_mj", "cpu_energy_mj", "gpu_energy_mj")
        if seen[name] is not None
    ]
    return ", ".join(said) if seen["total_energy_mj"] is not None else f"no total ({', '.join(said) or 'nothing'})"


def _having(pythons: Sequence[str], module: str) -> str | None:
    return next((python for python in pythons if _installed(python, module)), None)


def _installed(python: str, package: str) -> bool:
    code = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({package!r}) is None)"
    try:
        return subprocess.run([python, "-c", code], capture_output=True, timeout=30, check=False).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False
