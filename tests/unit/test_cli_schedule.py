"""``greentrain schedule``: what it writes, and one sentence with file and field for every mistake."""

from __future__ import annotations

import json
import os
import shutil
import stat
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from command import Command
from work_folder import make_work_folder

from greentrain.cli._measure import MeasureOptions, measure_model
from greentrain.profile_files import read_model_profile
from greentrain.workloads import load_workload
from greentrain_harness.profilers import layers


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("measured")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        make_work_folder(folder, devices=("a", "b", "c"))
    return folder


@pytest.fixture
def folder(measured: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A work folder that the test may spoil."""
    shutil.copytree(measured, tmp_path / "work")
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


@pytest.fixture
def greentrain(folder: Path, capsys: pytest.CaptureFixture[str]) -> Command:
    return Command(capsys)


def test_the_plan_and_the_time_optimal_one_beside_it(folder: Path, greentrain: Command) -> None:
    ended = greentrain("schedule", "--json")
    assert ended.code == 0
    printed = json.loads(ended.out)
    plan = json.loads((folder / "plan.json").read_text())
    assert printed["file"] == "plan.json"
    assert {name: plan[name] for name in printed["plan"]} == printed["plan"]
    assert plan["model"] == "toy-net"
    assert plan["batch"] == 16  # The default of the model's own file.
    assert set(plan["reasons"]) == {"a", "b", "c"}
    assert plan["certificate"]["gap_ratio"] == 0
    fastest = json.loads((folder / "plan.time-optimal.json").read_text())
    assert fastest["estimate"]["step_s"] <= plan["estimate"]["step_s"]


def test_the_text_says_why(greentrain: Command) -> None:
    ended = greentrain("schedule", "--exclude", "c")
    assert ended.code == 0
    assert "Why these devices:" in ended.out
    assert "c: left out by --exclude" in ended.out
    assert "Written: plan.json" in ended.out


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("bandwidth", "bandwith", "field link: Object contains unknown field `bandwith`."),
        ("1Gbit", "-1Gbit", "field link.bandwidth: '-1Gbit' must not be below"),
        ("1Gbit", "1000", "field link.bandwidth: '1000' is not a bandwidth."),
        ('"0.1ms"', "1", "field link.latency: Expected `str`, got `int`."),
        ('id = "b"', 'id = "a"', "device ids ['a'] are used twice."),
        ('"local"', '"remote"', "field device[0]: launch is 'remote', expected"),
        (
            'profile = "profiles/a.device.json"',
            'kind = "toaster"',
            "field device[0].kind: unknown device kind 'toaster'",
        ),
        ("profiles/a.device", "profiles/z.device", "field device[0].profile: profiles/z.device.json: no such file."),
        (
            "profiles/a.device",
            "profiles/toy-net.model",
            "field device[0].profile: profiles/toy-net.model.json: schema is",
        ),
        ('name = "home"', "name = home", "not valid TOML"),
    ],
)
def test_a_wrong_cluster_file(old: str, new: str, sentence: str, folder: Path, greentrain: Command) -> None:
    path = folder / "cluster.toml"
    path.write_text(path.read_text().replace(old, new, 1) if old != '"local"' else path.read_text().replace(old, new))
    ended = greentrain("schedule", "--json")
    assert ended.code == 2
    assert ended.sentence.startswith(f"cluster.toml: {sentence}")
    assert json.loads(ended.out)["error"] == ended.sentence
    assert not (folder / "plan.json").exists()


def test_a_model_of_ones_own_is_found_again_after_measuring(
    folder: Path, greentrain: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = read_model_profile(folder / "profiles", "toy-net").times_of("a", "current")
    monkeypatch.setattr(layers, "time_layers", lambda *_, **__: times)  # pyright: ignore[reportUnknownLambdaType]
    (folder / "profiles" / "toy-net.model.json").unlink()
    options = SimpleNamespace(folder=folder / "profiles", kind="a", command="greentrain measure")
    measure_model(
        cast("MeasureOptions", options), "net.py:workload", load_workload("net.py:workload"), quiet=True
    )  # fmt: skip
    assert read_model_profile(folder / "profiles", "toy-net").workload == "net.py:workload"
    assert greentrain("schedule").code == 0
    (folder / "net.py").unlink()
    ended = greentrain("schedule")
    assert ended.code == 2
    assert ended.sentence == f"{folder}/net.py: no such file, expected a Python file with a Workload."


@pytest.mark.parametrize("content", ["", "{", "[]", '{"schema": "greentrain.model/1"}', "\x00\x01"])
def test_a_damaged_model_profile(content: str, folder: Path, greentrain: Command) -> None:
    (folder / "profiles" / "toy-net.model.json").write_text(content)
    ended = greentrain("schedule")
    assert ended.code == 2
    assert ended.sentence.startswith("profiles/toy-net.model.json: ")


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (("--include", "z"), 2, "unknown device 'z'."),
        (("--exclude", "a", "--exclude", "b", "--exclude", "c"), 2, "no device is left to plan with."),
        (("--model", "other"), 2, "profiles/other.model.json: no such file; models profiled in profiles: toy-net."),
        (("--profiles", "nowhere"), 2, "nowhere: holds no model profile."),
        (("--cluster", "nowhere.toml"), 2, "nowhere.toml: no such file."),
        (("--micro-batch", "5"), 2, "micro-batch 5 does not divide the batch 16."),
        (("--deadline", "1h"), 2, "--deadline and --energy-budget need --samples"),
        (("--deadline", "soon", "--samples", "9"), 2, "--deadline: 'soon' is not a time."),
        (("--max-slowdown", "nan"), 2, "Invalid value for '--max-slowdown': nan is not a finite number."),
        (("--max-slowdown", "0.5"), 2, "Invalid value for '--max-slowdown'"),
        (("--output", "."), 2, "Invalid value for '-o' / '--output': File '.' is a directory."),
        (("--frontier",), 2, "--frontier is not supported yet."),
        (
            ("--planner", "exhaustive", "--batch", "4096", "--micro-batch", "4096"),
            2,
            "the exhaustive planner would face",
        ),
    ],
)
def test_a_wrong_wish(arguments: tuple[str, ...], code: int, sentence: str, greentrain: Command) -> None:
    ended = greentrain("schedule", *arguments)
    assert ended.code == code
    assert ended.sentence.startswith(sentence)


@pytest.mark.parametrize("planner", ["auto", "data", "pipeline", "single"])
@pytest.mark.parametrize(
    ("limit", "sentence"),
    [
        (("--deadline", "1s"), "the deadline is missed by "),
        (("--energy-budget", "1J"), "the energy budget is exceeded by "),
    ],
)
def test_a_limit_that_cannot_be_kept_is_named_with_the_shortfall(
    planner: str, limit: tuple[str, str], sentence: str, folder: Path, greentrain: Command
) -> None:
    ended = greentrain("schedule", "--planner", planner, *limit, "--samples", "100000000", "--json")
    assert ended.code == 3
    assert sentence in ended.sentence
    assert json.loads(ended.out)["error"] == ended.sentence
    assert not (folder / "plan.json").exists()


def test_a_pipe_is_written_to_and_never_replaced(folder: Path, greentrain: Command) -> None:
    os.mkfifo(folder / "pipe")
    found: list[str] = []
    reader = threading.Thread(target=lambda: found.append((folder / "pipe").read_text()))
    reader.start()
    # A time-optimal plan would go to a file of its own.
    assert greentrain("schedule", "--objective", "time", "-o", "pipe").code == 0
    reader.join(timeout=10)
    assert json.loads(found[0])["schema"] == "greentrain.plan/1"
    assert stat.S_ISFIFO((folder / "pipe").stat().st_mode)
