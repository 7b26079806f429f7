"""The table of layers over operating points, and the command that writes it."""

from __future__ import annotations

import csv
import importlib
from pathlib import Path

import pytest

from greentrain.cli import main
from greentrain.device import Device, OperatingPoint, Provenance
from greentrain.power import PowerCurve, PowerModel
from greentrain.profile import LayerProfile, LayerTimes, ModelProfile
from greentrain_harness.profilers.stage_table import COLUMNS, write_stage_table

POINTS = (
    OperatingPoint(name="slow", cpu_hz=5e8, cap_w=7.5),
    OperatingPoint(name="fast", cpu_hz=1e9),
    OperatingPoint(name="never-timed"),
)
BUSY_W = {"slow": 4.0, "fast": 10.0, "never-timed": 20.0}


def device() -> Device:
    curves = tuple(PowerCurve(point=name, share_X=(0.0, 1.0), power_w_X=(2.0, BUSY_W[name])) for name in BUSY_W)
    power = PowerModel(idle_w=2.0, curves=curves, source="measured", provenance="a test")
    return Device(id="box", kind="nano", memory_bytes=1, points=POINTS, power=power)


def times(kind: str, point: str, seconds: float) -> LayerTimes:
    return LayerTimes(
        model="toy", kind=kind, point=point, batch_B=(1, 8),
        forward_s_LB=((seconds, 4 * seconds), (2 * seconds, 8 * seconds)),
        backward_s_LB=((3 * seconds, 9 * seconds), (5 * seconds, 7 * seconds)), update_s_L=(0.5, 0.25),
        provenance=Provenance(meter="none", source="measured", command="", host="", versions={}, trials_n=1),
    )  # fmt: skip


def model() -> ModelProfile:
    layers = tuple(
        LayerProfile(name=name, param_bytes=1, activation_bytes=1, gradient_bytes=1, stash_bytes=1, forward_flop=1.0)
        for name in ("body", "head")
    )
    entries = (times("nano", "slow", 0.2), times("nano", "fast", 0.1), times("xavier", "fast", 0.01))
    return ModelProfile(model="toy", structure_sha256="0", layers=layers, input_bytes=1, times=entries)


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_one_row_per_point_batch_and_layer(tmp_path: Path) -> None:
    path = write_stage_table(tmp_path, device(), model())
    assert path.name == "box.toy.stages.csv"
    rows = read(path)
    assert tuple(rows[0]) == COLUMNS
    keys = [(row["point"], row["batch"], row["layer_name"]) for row in rows]
    assert keys == [(point, batch, name) for point in ("slow", "fast") for batch in "18" for name in ("body", "head")]
    assert {row["kind"] for row in rows} == {"nano"}
    assert {row["source"] for row in rows} == {"modelled"}, "no meter sees a layer"


def test_joules_are_busy_watts_times_seconds_and_unknown_is_empty(tmp_path: Path) -> None:
    rows = read(write_stage_table(tmp_path, device(), model()))
    last = rows[-1]
    assert (last["layer"], last["point"], last["batch"]) == ("1", "fast", "8")
    assert float(last["forward_s"]) == pytest.approx(0.8)
    assert float(last["forward_j"]) == pytest.approx(8.0)
    assert float(last["backward_j"]) == pytest.approx(7.0)
    assert (float(last["idle_w"]), float(last["busy_w"]), float(last["update_s"])) == (2.0, 10.0, 0.25)
    assert (last["cap_w"], last["gpu_hz"], float(last["cpu_hz"])) == ("", "", 1e9)
    assert float(rows[0]["cap_w"]) == 7.5
    stage_j = sum(float(row["forward_j"]) for row in rows if row["point"] == "slow" and row["batch"] == "1")
    assert stage_j == pytest.approx(4.0 * 0.6), "a stage is the sum of its layers"


def test_measure_writes_the_table_beside_the_layer_times(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(importlib.import_module("greentrain.cli._measure"), "LAYER_SECONDS", 0.3)
    with pytest.raises(SystemExit) as ended:
        main(["measure", "--device", "modelled", "--id", "box", "--model", "digits-cnn", "--window", "0.02", "--json"])
    assert ended.value.code == 0
    rows = read(tmp_path / "profiles/box.digits-cnn.stages.csv")
    assert len(rows) > 0
    assert all(float(row["forward_j"]) >= 0 and row["point"] == "current" for row in rows)
    assert (tmp_path / "profiles/box.current.digits-cnn.layers.json").exists()
