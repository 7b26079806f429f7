"""``greentrain simulate``: the timeline, the ledger, and one sentence for every wrong plan."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command import Command
from work_folder import make_work_folder

from greentrain.ledger import read_ledger

Plan = dict[str, Any]


@pytest.fixture(scope="module")
def scheduled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scheduled")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        make_work_folder(folder)
    return folder


@pytest.fixture
def greentrain(scheduled: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    monkeypatch.chdir(scheduled)
    command = Command(capsys)
    if not Path("plan.json").exists():
        assert command("schedule", "--planner", "pipeline", "--micro-batch", "8").code == 0
    return command


def test_the_round_in_words_and_as_a_ledger(greentrain: Command) -> None:
    ended = greentrain("simulate", "plan.json", "-o", "round.csv")
    assert ended.code == 0
    assert "(simulated, modelled power)" in ended.out
    for device in ("a", "b"):
        (line,) = (line for line in ended.out.splitlines() if line.startswith(f"  {device} |"))
        assert {"F", "B", "U"} <= set(line)
    rows = read_ledger(Path("round.csv"))
    assert {row.source for row in rows} == {"modelled"}
    printed = json.loads(greentrain("simulate", "plan.json", "--json").out)
    assert printed["rows"] == len(rows)
    assert printed["estimate"]["source"] == "modelled"


def test_the_round_as_a_page(greentrain: Command) -> None:
    ended = greentrain("simulate", "plan.json", "-o", "round.html")
    assert ended.code == 0
    page = Path("round.html").read_text()
    assert page.count("<svg") == 2
    assert "Timeline of one round by device. pipeline (simulator): a computes" in page
    assert "://" not in page.replace("http://www.w3.org", "")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("", "not valid JSON"),
        ("[]", "expected a JSON object with schema 'greentrain.plan/1'."),
        ('{"schema": "greentrain.plan/1"}', "Object missing required field `model`."),
        ('{"schema": "greentrain.plan/9"}', "schema is 'greentrain.plan/9', expected 'greentrain.plan/1'."),
        ('{"schema": "greentrain.plan/1", "model": "toy', "not valid JSON"),
    ],
)
def test_a_file_that_is_no_plan(content: str, sentence: str, greentrain: Command) -> None:
    Path("bad.json").write_text(content)
    ended = greentrain("simulate", "bad.json", "--json")
    assert ended.code == 2
    assert ended.sentence.startswith(f"bad.json: {sentence}")
    assert json.loads(ended.out)["error"] == ended.sentence


def change(**fields: object) -> Callable[[Plan], None]:
    return lambda plan: plan.update(fields)


def change_stage(**fields: object) -> Callable[[Plan], None]:
    return lambda plan: plan["stages"][0].update(fields)


def cut_short(plan: Plan) -> None:
    plan["stages"].pop()


def use_twice(plan: Plan) -> None:
    plan["stages"][1].update(devices=plan["stages"][0]["devices"])


def count_unknown(plan: Plan) -> None:
    plan["estimate"]["energy_j"].update(z={"idle": 1.0})


def miss_deadline(plan: Plan) -> None:
    plan["objective"].update(deadline_s=-1.0)


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (change(model="other-net"), "profiles/other-net.model.json: no such file; models profiled"),
        (change(structure_sha256="0" * 64), "bad.json: made for model 'toy-net' (000000000000), got 'toy-net' ("),
        (change(batch="16"), "bad.json: field batch: Expected `int`, got `str`."),
        (change(batch=-16), "bad.json: batch is -16, expected a finite number above 0."),
        (change(micro_batch=5), "bad.json: micro-batch 5 does not divide 16."),
        (change(nonsense=1), "bad.json: Object contains unknown field `nonsense`."),
        (change_stage(devices=["z"]), "bad.json: stage 0: unknown device 'z'."),
        (change_stage(points=["turbo"]), "bad.json: stage 0: device "),
        (change_stage(param_bytes=1), "bad.json: stage 0 states param_bytes 1, the model gives "),
        (change_stage(output_bytes=1), "bad.json: stage 0 states output_bytes 1, the model gives "),
        (change_stage(start=1), "bad.json: stage 0 starts at layer 1, expected 0."),
        (change_stage(shares=[7]), "bad.json: stage 0: shares (7,) do not add up to the micro-batch 8."),
        (
            change_stage(sharing="tensor_sequence"),
            "bad.json: field stages[0]: one device cannot share 'tensor_sequence'.",
        ),
        (cut_short, "bad.json: stages end at layer "),
        (use_twice, "bad.json: device used twice"),
        (count_unknown, "bad.json: unknown device 'z'."),
        (miss_deadline, "bad.json: field objective: deadline_s is -1.0"),
    ],
)
def test_a_plan_that_does_not_fit(spoil: Callable[[Plan], None], sentence: str, greentrain: Command) -> None:
    plan: Plan = json.loads(Path("plan.json").read_text())
    spoil(plan)
    Path("bad.json").write_text(json.dumps(plan))
    ended = greentrain("simulate", "bad.json")
    assert ended.code == 2
    assert ended.sentence.startswith(sentence)


@pytest.mark.parametrize(
    ("path", "sentence"), [("missing.json", "no such file."), (".", "is a folder, expected a file.")]
)
def test_no_file(path: str, sentence: str, greentrain: Command) -> None:
    ended = greentrain("simulate", path)
    assert (ended.code, ended.sentence) == (2, f"{path}: {sentence}")
