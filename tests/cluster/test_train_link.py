"""A device whose link goes down while a run goes on: the others go on without it, and it comes back by itself."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from work_folder import make_work_folder

from greentrain.files import read_json
from greentrain.plan import PLAN_SCHEMA, Plan
from greentrain.summary import SUMMARY_SCHEMA, Summary
from greentrain_datasets.catalogue import catalogue_device
from greentrain_harness.bench._faults_crew import Crew
from greentrain_harness.lab import Lab, down, up

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="a lab needs root on Linux"),
    pytest.mark.skipif(shutil.which("ip") is None or shutil.which("tc") is None, reason="a lab needs ip and tc"),
    # Three processes that import torch; on a busy machine that alone takes most of a minute.
    pytest.mark.timeout(180),
]

NODES = ("node0", "node1", "node2")
ROUNDS = 40


@pytest.fixture
def lab() -> Iterator[Lab]:
    name = f"link-{os.getpid()}"
    devices = [catalogue_device("jetson-nano-4gb", node) for node in NODES]
    try:
        yield up(name, devices=devices, quotas_percent=(60.0, 60.0, 60.0), bandwidth_bytes_per_s=12.5e6)
    finally:
        down(name)


def test_a_device_that_was_cut_off_comes_back(lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make_work_folder(tmp_path, devices=NODES)
    cluster = tmp_path / "cluster.toml"
    cluster.write_text(re.sub(r'cpus = "\d"', "threads = 1", cluster.read_text()))
    net = tmp_path / "net.py"
    net.write_text(net.read_text().replace("PAUSE_S = 0.0", "PAUSE_S = 0.3"))
    schedule = [sys.executable, "-m", "greentrain.cli", "schedule", "--planner", "data", "--no-explain"]
    subprocess.run(schedule, check=True, capture_output=True)
    devices = read_json(tmp_path / "plan.json", Plan, schema=PLAN_SCHEMA).devices
    victim = devices[0]  # The one that leads.
    with Crew(lab, tmp_path, "plan.json", devices, "cut", ["--rounds", str(ROUNDS)]) as crew:
        crew.await_round(3)
        crew.harm("link", victim)
        assert crew.await_seen(lambda seen: f"{victim} lost" in (seen.progress.event or ""), within_s=30)
        crew.mend("link", victim)
        assert crew.await_seen(lambda seen: f"{victim} joined" in (seen.progress.event or ""), within_s=60), (
            crew.last_words()
        )
        assert crew.await_end(devices, within_s=90) == dict.fromkeys(devices, 0), crew.last_words()
    summary = read_json(tmp_path / "runs" / "cut" / "summary.json", Summary, schema=SUMMARY_SCHEMA)
    assert (summary.status, summary.rounds) == ("finished", ROUNDS)
    assert [(change.lost, change.joined) for change in summary.recoveries] == [((victim,), ()), ((), (victim,))]
    # The limit of the runtime itself is a half of this; a busy machine is no failure.
    assert (summary.recoveries[0].detected_s or 60) < 6
