from __future__ import annotations

import csv
import os
from pathlib import Path

import pytest

from greentrain.errors import UsageError
from greentrain.profile import LayerProfile, ModelProfile
from greentrain_datasets import catalogue
from greentrain_datasets.catalogue import (
    catalogue_device,
    catalogue_entry,
    catalogue_kinds,
    modelled_layer_times,
)


def _model() -> ModelProfile:
    layers = (
        LayerProfile(
            name="dense", param_bytes=4000, activation_bytes=40, gradient_bytes=40, stash_bytes=80, forward_flop=2e6
        ),
        LayerProfile(
            name="relu", param_bytes=0, activation_bytes=40, gradient_bytes=40, stash_bytes=40, forward_flop=0
        ),
    )
    return ModelProfile(model="tiny", structure_sha256="0" * 64, layers=layers, input_bytes=40)


@pytest.mark.parametrize("kind", catalogue_kinds())
def test_every_kind_makes_a_modelled_device_with_sources(kind: str) -> None:
    device = catalogue_device(kind, "it")
    entry = catalogue_entry(kind)
    assert device.id == "it"
    assert device.kind == kind
    assert device.power.source == "modelled"
    assert "modelled" in device.power.provenance
    assert all(source in device.power.provenance for source in entry.sources)
    assert [source.split(":")[0] for source in entry.sources] == ["memory", "bandwidth", "cores", "clocks", "busy"]
    for source in (*entry.sources, entry.idle_basis):
        assert any(str(year) in source for year in range(2015, 2027)), source
    for point in device.points:
        curve = device.curve(point.name)
        assert 0 < curve.idle_w < curve.busy_w
        assert point.cap_w is None or curve.busy_w == pytest.approx(point.cap_w)


@pytest.mark.parametrize("kind", catalogue_kinds())
def test_the_default_point_is_the_largest(kind: str) -> None:
    rates = list(catalogue_entry(kind).train_flop_per_s.values())
    assert rates == sorted(rates, reverse=True)
    busy_w = [point.busy_w for point in catalogue_entry(kind).points]
    assert busy_w == sorted(busy_w, reverse=True)


def test_peak_rates_are_those_of_the_data_sheets() -> None:
    # FP32, from cores × 2 × clock: Nano 236 GFLOP/s, AGX Orin 5.3 TFLOP/s, RTX 3060 12.7 TFLOP/s.
    peaks = {kind: catalogue_entry(kind).points[0].peak_flop_per_s for kind in catalogue_kinds()}
    assert peaks["jetson-nano-4gb"] == pytest.approx(236e9, rel=0.01)
    assert peaks["jetson-agx-orin-64gb"] == pytest.approx(5.33e12, rel=0.01)
    assert peaks["pc-rtx-3060-12gb"] == pytest.approx(12.7e12, rel=0.01)
    assert peaks["raspberry-pi-5"] == pytest.approx(153.6e9, rel=0.01)
    # Orin Nano 4 GB 640 GFLOP/s, Orin NX 8 GB 1.57 TFLOP/s, AGX Orin 32 GB 3.33 TFLOP/s.
    assert peaks["jetson-orin-nano-4gb"] == pytest.approx(640e9, rel=0.01)
    assert peaks["jetson-orin-nx-8gb"] == pytest.approx(1.57e12, rel=0.01)
    assert peaks["jetson-agx-orin-32gb"] == pytest.approx(3.33e12, rel=0.01)


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ('\nbusy = "typical wall power', '\nwatts = "typical wall power', "unknown field `watts`"),
        ("press reviews 2023, ±20 %", "press reviews, ±20 %", "expected a source with its year"),
        ("press reviews 2023, ±30 %", "press reviews, ±30 %", "idle_basis needs a year"),
    ],
)
def test_a_figure_without_source_and_year_is_refused(
    before: str, after: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = catalogue._FILE.read_text(encoding="utf-8")
    assert whole.count(before) == 1
    (tmp_path / "catalogue.toml").write_text(whole.replace(before, after), encoding="utf-8")
    monkeypatch.setattr(catalogue, "_FILE", tmp_path / "catalogue.toml")
    with pytest.raises(UsageError, match=message):
        catalogue._entries.__wrapped__()


def modes(folder: Path, board: str) -> dict[str, dict[str, str]]:
    with (folder / "power_modes" / "nvpmodel_modes.csv").open(newline="") as stream:
        return {row["mode_name"]: row for row in csv.DictReader(stream) if row["device"] == board}


@pytest.mark.parametrize(
    ("kind", "board"),
    [
        ("jetson-tx2-8gb", "Jetson TX2"),
        ("jetson-xavier-nx-8gb", "Jetson Xavier NX"),
        ("jetson-agx-xavier-32gb", "Jetson AGX Xavier"),
        ("jetson-orin-nano-8gb", "Jetson Orin Nano 8GB"),
        ("jetson-orin-nano-4gb", "Jetson Orin Nano 4GB"),
        ("jetson-orin-nx-16gb", "Jetson Orin NX 16GB"),
        ("jetson-orin-nx-8gb", "Jetson Orin NX 8GB"),
        ("jetson-agx-orin-64gb", "Jetson AGX Orin 32GB devkit(0000)"),
        ("jetson-agx-orin-32gb", "Jetson AGX Orin 32GB"),
    ],
)
def test_clocks_are_those_of_the_boards_configuration(kind: str, board: str) -> None:
    folder = os.environ.get("GREENTRAIN_PUBLIC_DATA")
    if folder is None:
        pytest.skip("GREENTRAIN_PUBLIC_DATA does not name the folder of public data")
    known = modes(Path(folder), board)
    compared = 0
    for point in catalogue_entry(kind).points:
        row = known.get(point.point.name)
        # 0 and -1 mean: not limited.
        if row is not None and int(row["gpu_max_hz"]) > 0:
            compared += 1
            assert point.point.gpu_hz == int(row["gpu_max_hz"])
            assert point.point.cpu_hz == int(row["cpu_max_khz"]) * 1e3
    assert compared >= 1


def test_an_unknown_kind_names_the_nearest() -> None:
    with pytest.raises(UsageError, match="jetson-nona") as raised:
        catalogue_device("jetson-nona-4gb", "it")
    assert "jetson-nano-4gb" in (raised.value.hint or "")
    with pytest.raises(UsageError) as raised:
        catalogue_entry("zzz")
    assert "raspberry-pi-5" in (raised.value.hint or "")


def test_layer_times_follow_operations_and_bytes() -> None:
    entry = catalogue_entry("jetson-nano-4gb")
    times = modelled_layer_times(_model(), "jetson-nano-4gb", "5W")
    rate = entry.train_flop_per_s["5W"]
    assert times.batch_B == (1, 2, 4, 8, 16, 32, 64)
    assert times.forward_s_LB[0][3] == pytest.approx(entry.layer_overhead_s + 8 * 2e6 / rate)
    assert times.backward_s_LB[0][3] == pytest.approx(entry.layer_overhead_s + 2 * 8 * 2e6 / rate)
    assert times.forward_s_LB[1] == (entry.layer_overhead_s,) * 7
    assert times.update_s_L[0] == pytest.approx(entry.layer_overhead_s + 7 * 4000 / 25.6e9)
    assert times.update_s_L[1] == 0.0
    assert times.provenance.source == "modelled"
    assert "assumed" in times.provenance.note


def test_layer_times_of_an_unknown_point() -> None:
    with pytest.raises(UsageError, match="'9W'") as raised:
        modelled_layer_times(_model(), "jetson-nano-4gb", "9W")
    assert "MAXN" in (raised.value.hint or "")
