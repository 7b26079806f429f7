"""``greentrain schedule --check``: whether a plan still holds on this machine."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command import Command
from work_folder import make_work_folder

PLAN = ("schedule", "--planner", "pipeline", "--micro-batch", "8", "--no-explain")


@pytest.fixture
def greentrain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    monkeypatch.chdir(tmp_path)
    make_work_folder(tmp_path, devices=("a", "b"))
    command = Command(capsys)
    assert command(*PLAN).code == 0
    return command


def _changed(path: str, change: Callable[[Any], None]) -> None:
    content = json.loads(Path(path).read_text())
    change(content)
    Path(path).write_text(json.dumps(content))


def _replace(path: str, old: str, new: str) -> None:
    text = Path(path).read_text()
    assert old in text
    Path(path).write_text(text.replace(old, new))


def test_the_same_files(greentrain: Command) -> None:
    ended = greentrain("schedule", "--check", "plan.json")
    assert (ended.code, ended.out) == (
        0, "plan.json: the same model, times, cluster and price; it keeps its limits.\n",
    )  # fmt: skip
    assert json.loads(greentrain("schedule", "--check", "plan.json", "--json").out)["same"]


def test_the_user_s_own_model_may_lie_elsewhere(greentrain: Command) -> None:
    _changed("profiles/toy-net.model.json", lambda model: model.update(workload="elsewhere/net.py:workload"))
    assert greentrain("schedule", "--check", "plan.json").code == 0


def test_another_link_changes_price_and_hash(greentrain: Command) -> None:
    _replace("cluster.toml", "1Gbit", "1Mbit")
    ended = greentrain("schedule", "--check", "plan.json")
    assert ended.code == 2
    assert "plan.json: the devices or links are not those it was made from." in ended.out
    assert "plan.json: a round takes " in ended.out
    assert not json.loads(greentrain("schedule", "--check", "plan.json", "--json").out)["same"]


def test_other_times(greentrain: Command) -> None:
    (path,) = Path("profiles").glob("*a*.layers.json")
    _changed(str(path), lambda times: times.update(update_s_L=[2 * value for value in times["update_s_L"]]))
    ended = greentrain("schedule", "--check", "plan.json")
    assert ended.code == 2
    assert "the model's layers or times are not those it was made from" in ended.out


def test_figures_written_by_hand(greentrain: Command) -> None:
    _changed("plan.json", lambda plan: plan["estimate"].update(energy_j_per_sample=1e-9))
    ended = greentrain("schedule", "--check", "plan.json")
    assert ended.code == 2
    assert ended.out.startswith("plan.json: a sample takes ")


def test_a_plan_of_an_older_version_is_the_same_where_its_price_is(greentrain: Command) -> None:
    _changed("plan.json", lambda plan: plan.pop("origin"))
    ended = greentrain("schedule", "--check", "plan.json")
    assert ended.code == 0
    assert ended.out.startswith("plan.json: it does not say what it was made from")
    _replace("cluster.toml", "1Gbit", "1Mbit")
    assert greentrain("schedule", "--check", "plan.json").code == 2


def test_another_version_of_the_tool_is_told(greentrain: Command) -> None:
    _changed("plan.json", lambda plan: plan["origin"].update(tool_version="0.0.1"))
    ended = greentrain("schedule", "--check", "plan.json")
    assert ended.code == 0
    assert ended.out.startswith("plan.json: greentrain 0.0.1 made it, this is ")


def test_a_limit_that_is_broken_now(greentrain: Command) -> None:
    assert greentrain(*PLAN, "--samples", "16000", "--deadline", "30s").code == 0
    _replace("cluster.toml", "0.1ms", "40ms")
    ended = greentrain("schedule", "--check", "plan.json")
    assert ended.code == 3
    assert ended.sentence.startswith("plan.json: the deadline is missed by ")


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda: _replace("cluster.toml", 'id = "a"', 'id = "z"'), "plan.json: stage "),
        (
            lambda: _changed("profiles/toy-net.model.json", lambda model: model.update(structure_sha256="0" * 64)),
            "plan.json: made for model 'toy-net' (",
        ),
        (lambda: Path("plan.json").unlink(), "plan.json: no such file."),
    ],
)
def test_a_plan_that_does_not_belong(spoil: Callable[[], None], sentence: str, greentrain: Command) -> None:
    spoil()
    ended = greentrain("schedule", "--check", "plan.json")
    assert ended.code == 2
    assert ended.sentence.startswith(sentence)


def test_a_device_that_was_left_out_and_is_gone(greentrain: Command) -> None:
    assert greentrain("schedule", "--planner", "single", "--no-explain").code == 0
    text = Path("cluster.toml").read_text()
    Path("cluster.toml").write_text(text[: text.index('[[device]]\nid = "b"')])
    ended = greentrain("schedule", "--check", "plan.json")
    assert ended.code == 2
    assert ended.out.startswith("plan.json: b could take part when it was made and is gone.")
