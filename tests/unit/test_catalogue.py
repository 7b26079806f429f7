from __future__ import annotations

import pytest

from greentrain.errors import UsageError
from greentrain.profile import LayerProfile, ModelProfile
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
    assert any(str(year) in " ".join(entry.sources) for year in range(2015, 2027))
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
