"""A run whose devices are not as they were measured: it is said, and rows move from the next round on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from work_folder import Training, make_work_folder, unreadable

from greentrain.cli import main

# Twenty rounds of a quarter of a second, after torch was imported three times.
pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two workers of equal speed; the profiles say that one is half as fast, so that it gets fewer rows."""
    monkeypatch.chdir(tmp_path)
    make_work_folder(tmp_path, pause_s=0.02)
    net = tmp_path / "net.py"
    net.write_text(net.read_text().replace("time.sleep(PAUSE_S)", "time.sleep(PAUSE_S * len(rows))"))
    with pytest.raises(SystemExit) as ended:
        main(["schedule", "--planner", "data", "--micro-batch", "16", "--objective", "time", "--no-explain"])
    assert ended.value.code == 0
    return tmp_path


def test_rows_move_to_the_device_that_has_time(folder: Path) -> None:
    with Training(folder, "plan.json", "--run", "r", "--epochs", "3", "--rounds", "24", "--replan", "auto") as training:
        code, _, err = training.end(within_s=100)
    assert code == 0, err
    assert "measured and predicted disagree" in err
    assert "A new plan from the next round: moving rows" in err
    summary = json.loads((folder / "runs" / "r" / "summary.json").read_text())
    assert (summary["status"], summary["rounds"]) == ("finished", 24)
    changes = [(tuple(change["lost"]), tuple(change["joined"])) for change in summary["recoveries"]]
    assert changes
    assert set(changes) == {((), ())}
    assert not unreadable(err)


def test_it_is_only_said_unless_asked_for(folder: Path) -> None:
    with Training(folder, "plan.json", "--run", "r", "--rounds", "20") as training:
        code, _, err = training.end(within_s=100)
    assert code == 0, err
    assert "--replan auto" in err
    assert not json.loads((folder / "runs" / "r" / "summary.json").read_text())["recoveries"]
