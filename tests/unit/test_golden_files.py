"""Files of every schema version load for ever: never change what lies under tests/golden, only add to it."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from greentrain.actions import lower
from greentrain.actions import validate as validate_actions
from greentrain.cli._schedule_frontier import FRONTIER_SCHEMA, FrontierFile
from greentrain.cluster_file import read_cluster_file
from greentrain.files import read_json
from greentrain.ledger import read_ledger, total_energy_j
from greentrain.plan import PLAN_SCHEMA, Plan, check_model, parallelism_name
from greentrain.profile_files import device_profiles, model_names, read_device_profile, read_model_profile
from greentrain.summary import SUMMARY_SCHEMA, Summary

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
VERSIONS = sorted(GOLDEN.glob("schema-*"))

every_version = pytest.mark.parametrize("folder", VERSIONS, ids=[path.name for path in VERSIONS])


def test_there_are_golden_files() -> None:
    assert [path.name for path in VERSIONS][:1] == ["schema-1"]
    for folder in VERSIONS:
        for path in folder.rglob("*.json"):
            schema = msgspec.json.decode(path.read_bytes())["schema"]
            assert schema.startswith("greentrain.")


@every_version
def test_plan(folder: Path) -> None:
    plan = read_json(folder / "plan.json", Plan, schema=PLAN_SCHEMA)
    assert (plan.model, plan.devices, parallelism_name(plan)) == ("toy", ("d0", "d1"), "pipeline")
    assert plan.objective.max_slowdown == 1.2
    assert plan.estimate is not None
    assert plan.estimate.step_s == 0.04529877313861247
    assert plan.estimate.source == "modelled"
    assert plan.certificate is not None
    assert plan.certificate.gap_ratio == 0
    assert set(plan.reasons) == {"d0", "d1"}
    validate_actions(lower(plan))
    check_model(plan, read_model_profile(folder / "profiles", "toy"))


@every_version
def test_frontier(folder: Path) -> None:
    file = read_json(folder / "plan.frontier.json", FrontierFile, schema=FRONTIER_SCHEMA)
    assert [row.number for row in file.rows] == [1, 2]
    assert [row.marks for row in file.rows] == [("time", "EDP knee"), ("energy", "chosen")]
    assert file.origin.devices == ("d0", "d1")
    assert file.rows[0].plan.origin == file.origin
    assert file.rows[0].plan.stages == read_json(folder / "plan.json", Plan, schema=PLAN_SCHEMA).stages


@every_version
def test_profiles(folder: Path) -> None:
    (path,) = device_profiles(folder / "profiles")
    profile = read_device_profile(path)
    assert (profile.device.id, profile.device.kind, profile.device.wake_j) == ("d0", "kind0", 4.0)
    assert [point.name for point in profile.device.points] == ["p0", "p1"]
    assert profile.device.power.source == "measured"
    assert profile.provenance.trials_n == 3
    assert model_names(folder / "profiles") == ("toy",)
    model = read_model_profile(folder / "profiles", "toy")
    assert [layer.name for layer in model.layers] == ["layer0", "layer1", "layer2"]
    assert [(times.kind, times.point) for times in model.times] == [("kind0", "p0"), ("kind0", "p1")]
    assert model.times[0].batch_B == (1, 2, 4)


@every_version
def test_summary(folder: Path) -> None:
    summary = read_json(folder / "summary.json", Summary, schema=SUMMARY_SCHEMA)
    assert (summary.run, summary.status, summary.source, summary.energy_j) == ("golden", "finished", "measured", 12.5)
    assert (summary.predicted.source, summary.measured.source) == ("modelled", "measured")
    assert summary.accuracy is None


@every_version
def test_ledger(folder: Path) -> None:
    rows = read_ledger(folder / "ledger.csv")
    assert len(rows) == 9
    assert total_energy_j(rows) == 0.437086
    assert rows[1].bytes == 42608
    assert (rows[-1].energy_j, rows[-1].source, rows[-1].meter) == (None, "measured", 'ina3221, "emulated"')


@every_version
def test_cluster(folder: Path) -> None:
    file = read_cluster_file(folder / "cluster.toml")
    assert (file.name, file.link.bandwidth, file.links[0].medium) == ("living-room", "100Mbit", "air")
    board, nano = file.device
    assert (board.launch, board.cpus, board.quota_percent, board.memory) == ("local", "0-1", 60.0, "3GiB")
    assert (nano.kind, nano.can_run) == ("jetson-nano-4gb", False)
