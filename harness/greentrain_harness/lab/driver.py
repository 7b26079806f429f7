"""The sensor driver of a lab: one small process that keeps the nodes' sensor files up to date.

``python -m greentrain_harness.lab.driver FOLDER`` writes the trees, leaves a process behind that updates
them until it is told to end or its lab is gone, prints that process's id, and returns.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from greentrain.errors import GreentrainError, RunError, UnavailableError
from greentrain.reading import Clock
from greentrain_harness.lab.cgroups import CpuCounter
from greentrain_harness.lab.sensors import NodeSensor, SensorPlan, ShareTracker, read_sensor_plan, write_tree
from greentrain_harness.lab.state import DRIVER_MODULE
from greentrain_harness.meters.trees import JetsonTree

__all__ = ["NodeDriver", "main", "next_tick_s", "open_node", "start", "update"]

_START_TIMEOUT_S = 30.0
_STEP_W = 0.0005


@dataclass
class NodeDriver:
    """One node's sensor while the driver runs; ``shown_w`` is what the tree shows, watts."""

    sensor: NodeSensor
    counter: CpuCounter
    tree: JetsonTree
    tracker: ShareTracker
    shown_w: float


def start(folder: Path) -> int:
    """Start the driver of the plan in ``folder/sensors.json``; returns when all trees are written.

    Returns:
        The process id of the driver, which nobody needs to wait for.

    Raises:
        RunError: It did not come up.
    """
    import subprocess

    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    argv = [sys.executable, "-m", DRIVER_MODULE, str(folder)]
    try:
        result = subprocess.run(
            argv, capture_output=True, text=True, timeout=_START_TIMEOUT_S, check=False, env=environment, cwd="/"
        )
    except subprocess.TimeoutExpired as error:
        raise RunError(
            f"the sensor driver did not come up within {_START_TIMEOUT_S:g} s.", hint="Is the machine overloaded?"
        ) from error
    if result.returncode != 0 or not result.stdout.strip().isdigit():
        said = result.stderr.strip().splitlines() or [f"exit code {result.returncode}"]
        raise RunError(f"the sensor driver did not come up: {said[-1]}.", hint=f"Try by hand: {' '.join(argv)}")
    return int(result.stdout)


def open_node(sensor: NodeSensor, *, clock: Clock = time.monotonic) -> NodeDriver:
    """Write a node's tree, showing idle power, and start to track its CPU time.

    Raises:
        OSError: The control group is gone, or the tree cannot be written.
    """
    counter = CpuCounter(sensor.cgroup)
    return NodeDriver(
        sensor=sensor,
        counter=counter,
        tree=write_tree(sensor),
        tracker=ShareTracker(quota_percent=sensor.quota_percent, t_s=clock(), cpu_s=counter.read_s()),
        shown_w=sensor.curve.idle_w,
    )


def update(driver: NodeDriver, *, clock: Clock = time.monotonic) -> None:
    """Let the node's sensor show the power of the interval that ends now.

    Raises:
        OSError: The control group or the tree is gone.
    """
    share = driver.tracker.share(clock(), driver.counter.read_s())
    if share is None:
        return
    power_w = driver.sensor.curve.power_w(share)
    # Idle nodes would otherwise cost as much to show as busy ones. The sensors' own step is 1 mW or more.
    if abs(power_w - driver.shown_w) >= _STEP_W:
        driver.tree.set_total_w(power_w)
        driver.shown_w = power_w


def next_tick_s(t_s: float, *, first_s: float, interval_s: float) -> float:
    """The next instant of the regular beat that lies ahead; missed beats are left out, never made up."""
    # The small part keeps a wake-up right on the beat from giving that same beat again.
    return first_s + (int((t_s - first_s) / interval_s + 1e-6) + 1) * interval_s


def main(arguments: list[str]) -> int:
    """Write the trees, detach, and keep them up to date."""
    if len(arguments) != 1:
        sys.stderr.write(f"usage: python -m {DRIVER_MODULE} FOLDER\n")
        return 2
    folder = Path(arguments[0])
    try:
        plan = read_sensor_plan(folder / "sensors.json")
        drivers = [open_node(sensor) for sensor in plan.nodes]
        child = os.fork()
    except GreentrainError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    except OSError as error:
        sys.stderr.write(f"{error.filename or folder}: {error.strerror}\n")
        return UnavailableError.exit_code
    if child:
        sys.stdout.write(f"{child}\n")
        return 0
    _detach(folder / "sensors.log")
    ended: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: ended.append(number))
    _drive(plan, drivers, ended=lambda: bool(ended) or not (folder / "sensors.json").exists())
    return 0


def _detach(log: Path) -> None:
    os.setsid()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    null = os.open(os.devnull, os.O_RDONLY)
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for target, source in ((0, null), (1, out), (2, out)):
        os.dup2(source, target)
    os.close(null)
    os.close(out)
    # Fresh values also on a busy machine; it needs next to nothing.
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, -10)


def _drive(plan: SensorPlan, drivers: list[NodeDriver], *, ended: Callable[[], bool]) -> None:
    first_s = time.monotonic()
    while not ended():
        t_s = time.monotonic()
        time.sleep(max(next_tick_s(t_s, first_s=first_s, interval_s=plan.interval_s) - t_s, 0.0))
        try:
            for driver in drivers:
                update(driver)
        except OSError as error:
            # The lab is being taken down, or the driver can no longer tell the truth.
            sys.stderr.write(f"the sensor driver ends: {error}\n")
            return


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
