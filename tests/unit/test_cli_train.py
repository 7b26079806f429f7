"""``greentrain train`` before any worker runs: what is refused, and that a refusal leaves nothing behind."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest
from command import Command
from work_folder import make_work_folder

import greentrain.cli._run as run_module
import greentrain.cli._work as work_module
from greentrain.cluster_file import DeviceEntry
from greentrain.runtime.network import free_port


@pytest.fixture(scope="module")
def scheduled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scheduled")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        make_work_folder(folder)
    return folder


@pytest.fixture
def greentrain(
    scheduled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Command:
    """The command in a work folder of its own, with a plan for both devices."""
    command = Command(capsys)
    monkeypatch.chdir(scheduled)
    if not Path("plan.json").exists():
        assert command("schedule", "--planner", "data").code == 0
    shutil.copytree(scheduled, tmp_path / "work")
    monkeypatch.chdir(tmp_path / "work")
    return command


def replace(old: str, new: str, *, times: int = -1) -> None:
    path = Path("cluster.toml")
    path.write_text(path.read_text().replace(old, new, times))


@pytest.mark.parametrize("name", ["a/b", "..", ".hidden", "", "two words"])
def test_a_run_name_that_is_no_name(name: str, greentrain: Command) -> None:
    ended = greentrain("train", "plan.json", "--run", name)
    assert ended.code == 2
    assert ended.sentence.startswith(f"--run is {name!r}, expected a name ")
    assert not Path("runs").exists()


def test_a_run_name_that_is_taken(greentrain: Command) -> None:
    Path("runs/r").mkdir(parents=True)
    ended = greentrain("train", "plan.json", "--run", "r")
    assert (ended.code, ended.sentence) == (2, "runs/r: exists already.")


@pytest.mark.parametrize(
    ("old", "new", "times", "code", "sentence"),
    [
        ('launch = "local"\n', "", 1, 2, "device 'a' of the plan cannot run: cluster.toml gives it no launch."),
        ('"local"', '"manual"', -1, 2, "device 'a' has launch 'manual', which this command cannot start."),
        ('"local"', '"lab:absent/node0"', -1, 2, "no lab 'absent' stands; labs: "),
        (
            '"local"', '"lab:absent/node0"', 1, 2,
            "devices 'a' (lab:absent) and 'b' (the host's network) cannot reach each other.",
        ),
        ('id = "b"', 'id = "z"', 1, 2, "plan.json: stage 0: unknown device 'b'."),
    ],
)  # fmt: skip
def test_devices_that_cannot_be_started(
    old: str, new: str, times: int, code: int, sentence: str, greentrain: Command
) -> None:
    replace(old, new, times=times)
    ended = greentrain("train", "plan.json", "--json")
    assert ended.code == code
    assert ended.sentence.startswith(sentence)
    assert json.loads(ended.out)["error"] == ended.sentence
    assert not list(Path().glob("runs/*"))


def test_a_disk_without_room_for_the_model(greentrain: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path) -> SimpleNamespace:
        return SimpleNamespace(free=0)

    monkeypatch.setattr(run_module.shutil, "disk_usage", full)
    ended = greentrain("train", "plan.json", "--run", "r")
    assert ended.code == 5
    assert ended.sentence.startswith("runs/r: the disk has 0 B free, the trained model needs ")
    assert not Path("runs/r").exists()


def test_a_damaged_plan_beside_the_plan_frees_the_name_again(greentrain: Command) -> None:
    Path("plan.time-optimal.json").write_text("{")
    ended = greentrain("train", "plan.json", "--run", "r")
    assert ended.code == 2
    assert ended.sentence.startswith("plan.time-optimal.json: not valid JSON")
    assert not Path("runs/r").exists()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--as", "a"), "--as and --coordinator go together."),
        (("--coordinator", "localhost:29500"), "--as and --coordinator go together."),
        (("--as", "z", "--coordinator", "localhost:29500"), "device 'z' is not in the plan."),
        (("--as", "a", "--coordinator", "localhost"), "--coordinator is 'localhost', expected HOST:PORT."),
        (("--as", "a", "--coordinator", "localhost:0"), "--coordinator is 'localhost:0', expected HOST:PORT."),
        (("--as", "a", "--coordinator", "localhost:99999"), "--coordinator is 'localhost:99999', expected HOST:PORT."),
        (("--as", "a", "--coordinator", "localhost:29500", "--run", ".."), "--run is '..', expected a name"),
    ],
)
def test_a_worker_that_is_called_wrongly(arguments: tuple[str, ...], sentence: str, greentrain: Command) -> None:
    ended = greentrain("train", "plan.json", *arguments)
    assert ended.code == 2
    assert ended.sentence.startswith(sentence)


@pytest.mark.parametrize(
    ("written", "seen"),
    [
        ("summary.json", "this run has run before"),
        ("rank-0.ledger.csv", "this device has trained in this run before, and it has ended or nobody answers"),
    ],
)
def test_a_worker_never_writes_over_an_earlier_run(written: str, seen: str, greentrain: Command) -> None:
    Path("runs/r").mkdir(parents=True)
    Path("runs/r", written).write_text("earlier")
    ended = greentrain("train", "plan.json", "--as", "a", "--coordinator", "localhost:29500", "--run", "r")
    assert (ended.code, ended.sentence) == (2, f"runs/r/{written}: exists already, {seen}.")
    assert Path("runs/r", written).read_text() == "earlier"


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker changes its process: here it is the tests' own, and it is impatient."""
    monkeypatch.setattr(work_module, "_REACH_TIMEOUT_S", 0.1)
    monkeypatch.setattr(work_module, "restrain", str)
    monkeypatch.setenv("TORCH_CPP_LOG_LEVEL", "FATAL")


def test_a_worker_that_is_kept_to_some_processors_takes_as_many_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    taken: list[object] = []

    def keep(pid: int, cpus: set[int]) -> None:
        taken.append(cpus)

    monkeypatch.setattr(os, "sched_getaffinity", {0: {0, 1, 2, 3}}.__getitem__)
    monkeypatch.setattr(os, "sched_setaffinity", keep)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    monkeypatch.setattr(torch, "set_num_threads", taken.append)
    entry = DeviceEntry(id="a", profile="a.json", launch="local", cpus="1-2")
    work_module.restrain(entry)
    work_module.restrain(msgspec.structs.replace(entry, threads=1))
    work_module.restrain(msgspec.structs.replace(entry, cpus=None))
    assert taken == [{1, 2}, 2, {1, 2}, 1]


@pytest.mark.usefixtures("alone")
def test_nobody_at_the_coordinators_address(greentrain: Command) -> None:
    ended = greentrain("train", "plan.json", "--as", "b", "--coordinator", f"127.0.0.1:{free_port()}")
    assert ended.code == 5
    assert ended.sentence.startswith("nobody answers at 127.0.0.1:")
    assert "Start the worker of a first" in ended.err
    assert not Path("runs").exists()


@pytest.mark.usefixtures("alone")
def test_the_coordinator_is_another_machine(greentrain: Command) -> None:
    ended = greentrain("train", "plan.json", "--as", "a", "--coordinator", "192.0.2.1:29500")
    assert ended.code == 2
    assert ended.sentence == (
        "a cannot listen at 192.0.2.1:29500: '192.0.2.1' is not an address of this machine."
    )  # fmt: skip


def test_signals_stop_a_run_once_and_in_order() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)]
    with pytest.raises(KeyboardInterrupt), run_module.stopped_by_signals():  # noqa: PT012
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        finally:
            # Another one while the workers are being stopped changes nothing.
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGHUP)
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)] == before


def test_workers_that_share_a_processor_without_a_sensor_are_refused(greentrain: Command) -> None:
    text = Path("cluster.toml").read_text()
    Path("cluster.toml").write_text(text.replace('cpus = "1"', 'cpus = "0"'))
    ended = greentrain("train", "plan.json", "--run", "shared")
    assert ended.code == 2
    assert "devices 'a' and 'b' share processor 0 of this machine" in ended.sentence
    assert not Path("runs/shared").exists()
