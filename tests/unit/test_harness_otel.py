"""Joules as OpenTelemetry metrics, read back from its SDK."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest

from greentrain.errors import UnavailableError
from greentrain_harness.meters.boards import board_named
from greentrain_harness.meters.trees import write_jetson_tree
from greentrain_harness.otel import EnergyInstruments, hardware_type
from greentrain_harness.window import measure


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("VDD_IN", "power_supply"), ("VDD_CPU_GPU_CV", "power_supply"), ("POM_5V_GPU", "gpu"), ("gpu-0", "gpu"),
        ("package-0", "cpu"), ("package-0-dram", "memory"), ("dram", "memory"), ("VDDQ_VDD2_1V8AO", "memory"),
        ("BAT0", "battery"), ("wall", "power_supply"),
    ],
)  # fmt: skip
def test_types_of_hardware(name: str, kind: str) -> None:
    assert hardware_type(name) == kind


def test_without_opentelemetry_a_sentence_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.metrics", None)
    with pytest.raises(UnavailableError, match="not installed"):
        EnergyInstruments()


def test_windows_add_up_in_the_sdk(tmp_path: Path) -> None:
    sdk: Any = pytest.importorskip("opentelemetry.sdk.metrics", reason="opentelemetry-sdk is not installed")
    reader = importlib.import_module("opentelemetry.sdk.metrics.export").InMemoryMetricReader()
    instruments = EnergyInstruments(sdk.MeterProvider(metric_readers=[reader]))
    write_jetson_tree(tmp_path, board_named("orin-nx"), total_w=6.0)
    seconds = 0.0
    for _ in range(2):
        with measure(sysroot=tmp_path) as window:
            sum(range(10_000))
        instruments.record(window.span, window.rails)
        seconds += window.duration_s
    instruments.record(None, ())
    metrics = {
        metric.name: metric
        for metric in reader.get_metrics_data().resource_metrics[0].scope_metrics[0].metrics
    }  # fmt: skip
    assert {name: metric.unit for name, metric in metrics.items()} == {"hw.energy": "J", "hw.power": "W"}
    points = {point.attributes["hw.id"]: point for point in metrics["hw.energy"].data.data_points}
    assert points["ina3221/VDD_IN"].value == pytest.approx(6.0 * seconds, rel=1e-3)
    assert dict(points["ina3221/VDD_SOC"].attributes) == {
        "hw.id": "ina3221/VDD_SOC", "hw.name": "VDD_SOC", "hw.type": "power_supply", "hw.parent": "ina3221/VDD_IN",
        "greentrain.source": "measured",
    }  # fmt: skip
    assert metrics["hw.power"].data.data_points[0].value == pytest.approx(6.0, rel=1e-3)
