"""Runs sent to where people already look; packages that are not installed here are played by small fakes."""

from __future__ import annotations

import json
import sys
import urllib.request
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from report_runs import BASIS, make_run

from greentrain.cli import main
from greentrain.errors import UnavailableError, UsageError
from greentrain.tracking import RunMetrics
from greentrain_harness.export import openmetrics_text
from greentrain_harness.meters.boards import board_named
from greentrain_harness.meters.trees import write_jetson_tree
from greentrain_harness.prometheus import serve_energy
from greentrain_harness.trackers import open_tracker
from greentrain_reports.metrics import run_metrics
from greentrain_reports.run_folder import load_run
from greentrain_reports.tables import build_report


@pytest.fixture(scope="module")
def metrics(tmp_path_factory: pytest.TempPathFactory) -> RunMetrics:
    return run_metrics(build_report(load_run(make_run(tmp_path_factory.mktemp("runs") / "demo")), BASIS))


def test_metrics_are_those_of_the_report(metrics: RunMetrics) -> None:
    assert len(metrics.steps) == 3
    assert sum(step.values["energy_j"] for step in metrics.steps) == pytest.approx(metrics.totals["energy_j"])
    assert sum(metrics.energy_j_by_device.values()) == pytest.approx(metrics.totals["energy_j"])
    assert metrics.steps[0].values["device/fast/power_w"] == pytest.approx(11.1, rel=1e-3)
    assert metrics.settings["source"] == "mixed"
    assert "sci_kg_per_sample" not in metrics.totals, "not known is absent, not 0"


def test_a_long_run_sends_a_thousand_steps_at_most(tmp_path: Path) -> None:
    report = build_report(load_run(make_run(tmp_path / "demo", rounds_s=[0.1] * 2500)), BASIS)
    sent = run_metrics(report)
    assert len(sent.steps) <= 1000
    assert sent.steps[-1].number == 2499
    assert sum(step.values["energy_j"] for step in sent.steps) == pytest.approx(report.headline.energy_j)


def test_openmetrics_is_understood_by_its_own_parser(metrics: RunMetrics) -> None:
    parser = pytest.importorskip("prometheus_client.openmetrics.parser")
    families = {family.name: family for family in parser.text_string_to_metric_families(openmetrics_text([metrics]))}
    assert families["greentrain_run_energy_joules"].samples[0].value == metrics.totals["energy_j"]
    devices = {
        sample.labels["device"]: (sample.value, sample.labels["source"])
        for sample in families["greentrain_device_energy_joules"].samples
    }
    assert devices == {
        name: (energy_j, metrics.source_by_device[name]) for name, energy_j in metrics.energy_j_by_device.items()
    }


def test_the_report_command_writes_openmetrics(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, file = make_run(tmp_path / "demo"), tmp_path / "run.prom"
    with pytest.raises(SystemExit) as ended:
        main(["report", str(folder), "--format", "json", "--to", f"openmetrics={file}"])
    assert ended.value.code == 0
    energy_j = json.loads((folder / "report.json").read_text())["runs"][0]["headline"]["energy_j"]
    assert f'greentrain_run_energy_joules_total{{run="demo"}} {energy_j!r}' in file.read_text()


class _Writer:
    made: list[_Writer]

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.scalars: dict[str, list[tuple[int, float]]] = {}
        _Writer.made.append(self)

    def add_scalar(self, name: str, value: float, step: int) -> None:
        self.scalars.setdefault(name, []).append((step, value))

    def add_text(self, name: str, text: str, step: int) -> None: ...

    def close(self) -> None: ...


def test_tensorboard_gets_steps_and_totals(
    metrics: RunMetrics, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _Writer.made = []
    module: Any = ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = _Writer
    monkeypatch.setitem(sys.modules, "tensorboard", ModuleType("tensorboard"))
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    with open_tracker("tensorboard", str(tmp_path)) as tracker:
        tracker.log_run(metrics)
        tracker.log({"energy_j": 1.5}, 10)
    run, loop = _Writer.made
    assert run.folder == str(tmp_path / "demo")
    assert run.scalars["greentrain/energy_j"] == [(2, metrics.totals["energy_j"])]
    assert [step for step, _ in run.scalars["greentrain/step/energy_j"]] == [0, 1, 2]
    assert loop.scalars == {"greentrain/energy_j": [(10, 1.5)]}


def test_wandb_gets_one_run_with_its_own_id(metrics: RunMetrics, monkeypatch: pytest.MonkeyPatch) -> None:
    logged: list[tuple[int, dict[str, float]]] = []
    run = SimpleNamespace(summary={}, log=lambda values, step: logged.append((step, values)), finish=lambda: None)  # pyright: ignore[reportUnknownLambdaType]
    asked: list[dict[str, object]] = []
    fake: Any = ModuleType("wandb")
    fake.init = lambda **options: (asked.append(options), run)[1]  # pyright: ignore[reportUnknownLambdaType]
    monkeypatch.setitem(sys.modules, "wandb", fake)
    with open_tracker("wandb", "project") as tracker:
        tracker.log_run(metrics)
    assert (asked[0]["project"], asked[0]["id"]) == ("project", metrics.run_id)
    assert [step for step, _ in logged] == [0, 1, 2]
    assert run.summary["greentrain/energy_j"] == metrics.totals["energy_j"]


@pytest.mark.parametrize("kind", ["tensorboard", "mlflow", "wandb"])
def test_a_package_that_is_not_there_is_named(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, kind, None)
    with pytest.raises(UnavailableError, match=kind) as raised:
        open_tracker(kind, "somewhere")
    assert f"greentrain[{kind}]" in (raised.value.hint or "")


def test_an_unknown_tracker_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UsageError, match="unknown tracker"):
        open_tracker("paper", "wall")
    with pytest.raises(SystemExit) as ended:
        main(["report", str(make_run(tmp_path / "demo")), "--to", "paper=wall"])
    assert ended.value.code == 2
    assert "tensorboard" in capsys.readouterr().err


def test_a_running_process_answers_scrapes(tmp_path: Path) -> None:
    parser = pytest.importorskip("prometheus_client.parser")
    write_jetson_tree(tmp_path, board_named("agx-orin"), total_w=20.0)

    def scrape(port: int) -> float:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            families = {it.name: it for it in parser.text_string_to_metric_families(answer.read().decode())}
        samples = families["greentrain_energy_joules"].samples
        assert {sample.labels["device"] for sample in samples} == {"orin"}
        return sum(sample.value for sample in samples if sample.labels["root"] == "true")

    with serve_energy(0, device="jetson", name="orin", sysroot=tmp_path) as port:
        first = scrape(port)
        assert scrape(port) > first >= 0
