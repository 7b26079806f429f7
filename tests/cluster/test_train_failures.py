"""Runs that are cut short: the exit code, one sentence, what is kept, and that nobody lingers."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
from work_folder import Training, make_work_folder, unreadable, until

from greentrain.cli import main
from greentrain.ledger import read_ledger

needs_root = pytest.mark.skipif(
    sys.platform != "linux" or os.geteuid() != 0, reason="mounting a small disk needs root on Linux"
)

pytestmark = pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="the workers are found in /proc")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A work folder with a plan whose rounds are slow enough to be cut."""
    found = tmp_path_factory.mktemp("failures")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(found)
        make_work_folder(found, pause_s=0.02)
        with pytest.raises(SystemExit) as ended:
            main(["schedule", "--planner", "data"])
    assert ended.value.code == 0
    return found


def start(folder: Path, run: str, *arguments: str) -> Training:
    """A long run on two workers that has come to its third round."""
    training = Training(folder, "plan.json", "--epochs", "10000", "--run", run, *arguments)
    try:
        until(lambda: min(training.rounds(run, 0), training.rounds(run, 1)) >= 3 or training.process.poll() is not None)
    except BaseException:
        training.__exit__()
        raise
    return training


def check_kept(folder: Path, run: str, status: str) -> None:
    """Every round that was written is in the ledger, and the summary says how the run ended."""
    place = folder / "runs" / run
    summary = json.loads((place / "summary.json").read_text())
    rows = read_ledger(place / "ledger.csv")
    assert summary["status"] == status
    assert summary["rounds"] >= 3
    assert {row.device for row in rows} == {"a", "b"}
    for rank in (0, 1):
        written = read_ledger(place / f"rank-{rank}.ledger.csv", allow_cut=True)
        assert [row for row in rows if row.rank == rank] == written


def check_said(folder: Path, run: str, err: str) -> str:
    """The one sentence; nothing that was said or logged is unreadable."""
    logs = "".join(path.read_text() for path in (folder / "runs" / run / "logs").iterdir())
    assert not unreadable(err + logs)
    sentences = [line for line in err.splitlines() if line.startswith("Error: ")]
    assert len(sentences) == 1, err
    return sentences[0]


@dataclass(frozen=True)
class Silent:
    """A run whose worker of b was stopped: it is left alone while the other tests go on."""

    folder: Path
    ended: Future[tuple[float, int, str]]


@pytest.fixture(scope="module", autouse=True)
def silent(folder: Path) -> Iterator[Silent]:
    place = folder.with_name("silent")
    shutil.copytree(folder, place)
    with start(place, "stop", "--no-recovery") as training, ThreadPoolExecutor() as pool:
        os.kill(training.workers()["b"], signal.SIGSTOP)
        since_s = time.monotonic()

        def wait() -> tuple[float, int, str]:
            code, _, err = training.end()
            return time.monotonic() - since_s, code, err

        yield Silent(place, pool.submit(wait))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_stops_its_workers_and_keeps_what_it_has(folder: Path, number: signal.Signals) -> None:
    run = number.name.lower()
    with start(folder, run, "--json") as training:
        assert len(training.workers()) == 2
        training.process.send_signal(number)
        code, out, err = training.end()
        assert training.workers() == {}
    assert code == 130
    assert json.loads(out)["error"] == "interrupted."
    check_said(folder, run, err)
    check_kept(folder, run, "interrupted")


def test_workers_end_with_a_killed_launcher_and_keep_what_they_have(folder: Path) -> None:
    with start(folder, "killed") as training:
        training.process.kill()
        until(lambda: training.workers() == {}, within_s=20)
        assert training.end()[0] == -signal.SIGKILL
    summary = json.loads((folder / "runs" / "killed" / "summary.json").read_text())
    assert summary["status"] == "interrupted"
    assert summary["rounds"] >= 3
    assert {row.device for row in read_ledger(folder / "runs" / "killed" / "ledger.csv")} == {"a", "b"}


def test_a_killed_worker_is_named_with_its_signal(folder: Path) -> None:
    with start(folder, "kill", "--no-recovery") as training:
        os.kill(training.workers()["b"], signal.SIGKILL)
        code, _, err = training.end(within_s=30)
        assert training.workers() == {}
    assert code == 5
    assert check_said(folder, "kill", err) == "Error: the worker of b was killed (SIGKILL)."
    check_kept(folder, "kill", "failed")


def test_the_launcher_goes_on_with_the_workers_that_are_left(folder: Path) -> None:
    with start(folder, "on", "--rounds", "40", "--json") as training:
        os.kill(training.workers()["a"], signal.SIGKILL)
        code, out, err = training.end(within_s=30)
        assert training.workers() == {}
    assert code == 0
    assert "the worker of a was killed (SIGKILL)." in err
    assert not unreadable(err)
    summary = json.loads(out)
    assert (summary["status"], summary["rounds"]) == ("finished", 40)
    assert [recovery["lost"] for recovery in summary["recoveries"]] == [["a"]]
    assert {row.device for row in read_ledger(folder / "runs" / "on" / "ledger.csv")} == {"a", "b"}


def test_a_worker_that_cannot_start_passes_its_exit_code_on(folder: Path) -> None:
    text = (folder / "cluster.toml").read_text().replace('"modelled"', '"jetson"', 1)
    (folder / "jetson.toml").write_text(text)
    with Training(folder, "plan.json", "--run", "start", "--cluster", "jetson.toml", "--json") as training:
        code, out, err = training.end()
    assert code == 4
    sentence = check_said(folder, "start", err)
    assert sentence.startswith("Error: the worker of a failed: ")
    assert "INA3221" in sentence
    assert f"Error: {json.loads(out)['error']}" == sentence
    assert json.loads((folder / "runs" / "start" / "summary.json").read_text())["status"] == "failed"


@pytest.fixture
def small_disk(folder: Path) -> Iterator[Path]:
    """The work folder with a disk of 1 MiB for its runs."""
    (folder / "small" / "runs").mkdir(parents=True)
    for name in ("cluster.toml", "plan.json", "net.py", "profiles"):
        (folder / "small" / name).symlink_to(folder / name)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(folder / "small" / "runs")], check=True)
    try:
        yield folder / "small"
    finally:
        subprocess.run(["umount", str(folder / "small" / "runs")], check=True)
        shutil.rmtree(folder / "small")


def fill(path: Path) -> None:
    """Write until the disk is full."""
    with path.open("wb", buffering=0) as filler, contextlib.suppress(OSError):
        while True:
            filler.write(bytes(4096))


@pytest.mark.root
@needs_root
def test_a_full_disk_is_named_and_what_was_written_is_kept(small_disk: Path) -> None:
    with start(small_disk, "full") as training:
        fill(small_disk / "runs" / "filler")
        code, _, err = training.end()
        assert training.workers() == {}
    assert code == 5
    sentence = check_said(small_disk, "full", err)
    assert ".ledger.csv: cannot be written, the disk is full." in sentence
    for rank in (0, 1):
        assert len(read_ledger(small_disk / "runs" / "full" / f"rank-{rank}.ledger.csv", allow_cut=True)) > 3


@pytest.mark.root
@needs_root
def test_a_read_only_disk_is_a_missing_permission(
    small_disk: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(small_disk)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk / "runs")], check=True)
    with pytest.raises(SystemExit) as ended:
        main(["train", "plan.json", "--run", "r"])
    assert ended.value.code == 4
    assert "Error: runs/r: cannot be written (Read-only file system)." in capsys.readouterr().err


def test_a_silent_worker_is_named_by_the_others(silent: Silent) -> None:
    duration_s, code, err = silent.ended.result()
    assert (code, duration_s < 60) == (5, True)  # 20 s of silence, and what a busy machine adds
    said = check_said(silent.folder, "stop", err)
    assert said.startswith("Error: the worker of b does not answer: a: lost its peers (")
    check_kept(silent.folder, "stop", "failed")
