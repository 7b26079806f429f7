"""A work folder as a person has it after measuring: cluster.toml, profiles/, a small model of one's own, plans.

The layer times are made up, so that nothing has to be measured; the model and its data are one Python
file, so that a worker is up in seconds and a round is as slow as a test wants it.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from greentrain.device import Device, DeviceProfile, OperatingPoint, Provenance
from greentrain.power import PowerModel, physical_curve
from greentrain.profile import LayerTimes, ModelProfile
from greentrain.profile_files import write_device_profile, write_layer_times, write_model_profile
from greentrain.workloads import load_workload
from greentrain_harness.profilers.layers import profile_model

__all__ = ["Training", "make_work_folder", "unreadable", "until", "write_reviews"]

PROVENANCE = Provenance(meter="none", source="modelled", command="test", host="test", versions={}, trials_n=1)

NET = """\
import time
import numpy as np
import torch
from torch import nn
from greentrain.training_data import TrainingData
from greentrain.workloads.workload import Workload, build_seeded

class Slow(nn.Module):
    def forward(self, rows):
        time.sleep(PAUSE_S)
        return rows * 1.0

def rows(n, seed):
    inputs = np.random.default_rng(seed).normal(size=(n, 16)).astype(np.float32)
    return (inputs,), inputs[:, :4].argmax(axis=1)

train_inputs, train_targets = rows(160, 0)
test_inputs, test_targets = rows(40, 1)
data = TrainingData(
    name="toy", source="made up", train_inputs=train_inputs, train_targets=train_targets,
    test_inputs=test_inputs, test_targets=test_targets,
)
workload = Workload(
    name="toy-net", description="for tests", dataset="net.py:data",
    build=lambda seed: build_seeded([Slow, lambda: nn.Linear(16, 32), nn.ReLU, lambda: nn.Linear(32, 4)], seed),
    example=lambda n: ((torch.zeros(n, 16),), torch.zeros(n, dtype=torch.int64)),
    loss=nn.functional.cross_entropy, optimizer="sgd", learning_rate=0.1,
    batch=16, micro_batches=(8, 16), epochs=2, target_accuracy=0.5,
)
"""

_GOOD, _BAD = ("a wonderful film", "great acting and a lovely story"), ("a terrible film", "boring and badly acted")


def make_work_folder(
    folder: Path,
    *,
    devices: Sequence[str] = ("a", "b"),
    model: str | None = None,
    pause_s: float = 0.0,
    slowness: float = 1.0,
) -> None:
    """Write the files that ``measure`` and ``cluster init`` would have written. Call in ``folder``.

    Args:
        folder: The work folder, which is the current one.
        devices: Local workers; each is twice as slow as the one before.
        model: A workload that comes with greentrain, instead of the small one in ``net.py``.
        pause_s: What a forward pass of the small one takes, seconds.
        slowness: All made-up layer times are so many times longer.
    """
    (folder / "net.py").write_text(f"PAUSE_S = {pause_s}\n{NET}")
    spec = model or "net.py:workload"
    profile = profile_model(load_workload(spec))
    if model is None:
        profile = msgspec.structs.replace(profile, workload=spec)
    profiles = folder / "profiles"
    write_model_profile(profiles, profile)
    for index, device in enumerate(devices):
        write_layer_times(profiles, _times(profile, device, slowness=slowness * 2.0**index))
        write_device_profile(profiles, DeviceProfile(device=_device(device), provenance=PROVENANCE))
    tables = "\n".join(
        f'[[device]]\nid = "{device}"\nprofile = "profiles/{device}.device.json"\nlaunch = "local"\nboard = "pc"\n'
        # Each on a processor of its own: without a sensor shared ones would count twice.
        f'meter = "modelled"\ncpus = "{index}"\n'
        for index, device in enumerate(devices)
    )
    head = 'name = "home"\n\n[link]\nbandwidth = "1Gbit"\nlatency = "0.1ms"\n\n'
    (folder / "cluster.toml").write_text(head + tables)


def write_reviews(folder: Path) -> Path:
    """Forty short texts with a verdict each."""
    lines = ["sentence,verdict"]
    for number in range(20):
        lines += [f"{_GOOD[number % 2]} number {number},good", f"{_BAD[number % 2]} number {number},bad"]
    path = folder / "reviews.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


def _times(profile: ModelProfile, kind: str, *, slowness: float) -> LayerTimes:
    layers = len(profile.layers)
    return LayerTimes(
        model=profile.model,
        kind=kind,
        point="current",
        batch_B=(1, 64),
        forward_s_LB=((1e-4 * slowness, 2e-3 * slowness),) * layers,
        backward_s_LB=((2e-4 * slowness, 4e-3 * slowness),) * layers,
        update_s_L=(1e-4 * slowness,) * layers,
        provenance=PROVENANCE,
    )


def _device(name: str) -> Device:
    curve = physical_curve(point="current", idle_w=2.0, busy_w=8.0, cubic_share=0.5, fit="test")
    return Device(
        id=name,
        kind=name,
        memory_bytes=1 << 30,
        points=(OperatingPoint(name="current"),),
        power=PowerModel(idle_w=2.0, curves=(curve,), source="modelled", provenance="test"),
    )


class Training:
    """``greentrain train`` as a process without a terminal; leaving it ends whatever is left."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.folder = folder
        self.process = subprocess.Popen(
            [sys.executable, "-m", "greentrain.cli", "train", *arguments],
            cwd=folder, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def __enter__(self) -> Training:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        for pid in self.workers().values():
            os.kill(pid, signal.SIGKILL)
        self.process.communicate()

    def workers(self) -> dict[str, int]:
        """Process ids of the living workers in this folder, by device."""
        found: dict[str, int] = {}
        for process in Path("/proc").glob("[0-9]*"):
            try:
                words = (process / "cmdline").read_bytes().decode().split("\0")
                here = (process / "cwd").resolve() == self.folder.resolve()
            except OSError:
                continue
            if here and "--as" in words:
                found[words[words.index("--as") + 1]] = int(process.name)
        return found

    def rounds(self, run: str, rank: int) -> int:
        """Rounds that a rank has written."""
        path = self.folder / "runs" / run / f"rank-{rank}.ledger.csv"
        # The header has a column of that name.
        return path.read_text().count(",step,") - 1 if path.exists() else 0

    def end(self, *, within_s: float = 120.0) -> tuple[int, str, str]:
        """Wait for the end: exit code, standard output, standard error."""
        out, err = self.process.communicate(timeout=within_s)
        return self.process.returncode, out, err


def until(holds: Callable[[], bool], *, within_s: float = 90.0) -> None:
    """Wait until something holds; fails when it takes too long."""
    until_s = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < until_s, "it took too long"
        time.sleep(0.05)


def unreadable(text: str) -> list[str]:
    """What no person should have to read: tracebacks, stacks and source places of C++."""
    signs = ("Traceback", "most recent call", "frame #", ".cpp:", ".cc:", "terminate called", "[W", "[E")
    return [sign for sign in signs if sign in text]
