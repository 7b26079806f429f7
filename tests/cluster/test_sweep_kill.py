"""A real ``greentrain measure --points all`` that is killed outright: the next start puts the clocks back."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from greentrain_harness.controls.trees import write_cpufreq_tree
from greentrain_harness.meters.boards import board_named
from greentrain_harness.meters.trees import write_jetson_tree


@pytest.mark.slow
def test_kill_during_a_sweep_leaves_nothing_changed_after_the_next_start(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    write_jetson_tree(tree, board_named("orin-nx"), total_w=6.0)
    folders = write_cpufreq_tree(tree)
    limits = [folder / "scaling_max_freq" for folder in folders]
    floors = [folder / "scaling_min_freq" for folder in folders]
    before = [path.read_text() for path in (*limits, *floors)]
    words = [
        "measure", "--device", "jetson", "--points", "all", "--model", "none", "--id", "d", "--window", "0.02",
        "--sysroot", str(tree),
    ]  # fmt: skip
    environment = {name: text for name, text in os.environ.items() if name != "GREENTRAIN_SYSROOT"}

    def start(*arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "greentrain.cli", *arguments], cwd=tmp_path, env=environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    dry = start(*words, "--dry-run")
    told, _ = dry.communicate(timeout=50)
    assert dry.returncode == 0
    assert "5 points with cpufreq" in told
    assert [path.read_text() for path in (*limits, *floors)] == before, "a dry run changes nothing"

    with start(*words) as sweep:
        assert sweep.stderr is not None
        # The second trial at the second clock: the clock has been set, and a point lies finished on disk.
        for line in sweep.stderr:
            if "trial 2" in line and "cpu-1200MHz" in line:
                break
        assert [path.read_text() for path in limits] == ["1200000\n", "1200000\n"]
        sweep.kill()
    finished = {path.stem for path in (tmp_path / "profiles/d.sweep").iterdir()}
    assert {"current", "cpu-1500MHz"} <= finished
    assert [path.read_text() for path in (*limits, *floors)] != before

    doctor = start("doctor", "--json", "--sysroot", str(tree))
    _, told = doctor.communicate(timeout=50)
    assert doctor.returncode == 0
    assert f"Process {sweep.pid} was killed while it had changed cpufreq: everything was put back." in told
    assert [path.read_text() for path in (*limits, *floors)] == before

    dry = start(*words, "--dry-run")
    told, _ = dry.communicate(timeout=50)
    assert "already measured: " in told
    assert "current" in told.split("already measured: ")[1].splitlines()[0]
