"""Runs whose workers are started over SSH, by torchrun and by Slurm's variables."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from ssh_server import launch_over_ssh, ssh_port
from work_folder import Training, make_work_folder, unreadable

from greentrain.cli import main
from greentrain.runtime.network import free_port

__all__ = ["ssh_port"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A work folder with a pipeline of two workers."""
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    make_work_folder(here)
    with pytest.raises(SystemExit) as ended:
        main(["schedule", "--planner", "pipeline", "--micro-batch", "8"])
    assert ended.value.code == 0
    return here


def test_workers_over_ssh_leave_the_runs_files_here(folder: Path, ssh_port: int, tmp_path: Path) -> None:
    launch_over_ssh(folder, ssh_port, tmp_path / "else where")
    with Training(folder, "plan.json", "--run", "s", "--rounds", "3") as training:
        code, out, err = training.end()
    assert code == 0, err
    assert "3 rounds" in out
    summary = json.loads((folder / "runs" / "s" / "summary.json").read_text())
    assert (summary["status"], summary["rounds"], summary["devices"]) == ("finished", 3, ["a", "b"])
    for name in ("ledger.csv", "model.safetensors", "plan.json"):
        assert (folder / "runs" / "s" / name).exists()
    assert not unreadable(err)


def test_a_host_that_refuses_is_named_before_anything_runs(folder: Path, ssh_port: int, tmp_path: Path) -> None:
    launch_over_ssh(folder, free_port(), tmp_path)
    with Training(folder, "plan.json", "--run", "s") as training:
        code, _, err = training.end()
    assert code == 5
    assert "127.0.0.1 cannot be used over SSH" in err
    assert "refused" in err
    assert not (folder / "runs" / "s").exists()
    assert not unreadable(err)


def test_torchrun_starts_the_workers(folder: Path) -> None:
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nnodes", "1", "--nproc-per-node", "2", "--master-addr",
        "127.0.0.1", "--master-port", str(free_port()), "-m", "--", "greentrain.cli", "train", "plan.json",
        "--from-environment", "--run", "t", "--rounds", "3",
    ]  # fmt: skip
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=50, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads((folder / "runs" / "t" / "summary.json").read_text())["status"] == "finished"


def test_slurms_variables_start_a_worker(folder: Path) -> None:
    coordinator = f"127.0.0.1:{free_port()}"
    workers = [
        subprocess.Popen(
            [sys.executable, "-m", "greentrain.cli", "train", "plan.json", "--from-environment", "--run", "t",
             "--rounds", "2"],
            cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            env={**os.environ, "SLURM_PROCID": str(rank), "SLURM_NTASKS": "2", "GREENTRAIN_COORDINATOR": coordinator},
        )
        for rank in range(2)
    ]  # fmt: skip
    try:
        for worker in workers:
            said, _ = worker.communicate(timeout=50)
            assert worker.returncode == 0, said
    finally:
        for worker in workers:
            worker.kill()
            worker.communicate()
    assert json.loads((folder / "runs" / "t" / "summary.json").read_text())["status"] == "finished"
