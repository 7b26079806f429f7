"""Real sensors of this machine; skipped, with the reason, where there are none."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from greentrain_harness.meters import meter_module
from greentrain_harness.sampler import Sampler

ROOT = Path("/")


@pytest.mark.parametrize("name", ["ina3221", "jtop", "rapl", "nvml", "combined", "hwmon", "wall"])
def test_half_a_second_costs_a_plausible_energy(name: str) -> None:
    module = meter_module(name)
    why_not = module.detect(ROOT)
    if why_not is not None:
        pytest.skip(why_not)
    with Sampler(module.open_meter(sysroot=ROOT)) as sampler:
        start_s = sampler.now_s()
        time.sleep(0.5)
        span = sampler.span(start_s, sampler.now_s())
    assert span.source == "measured"
    assert span.gap_s == 0
    assert span.mean_w is not None
    assert 0.05 < span.mean_w < 5000
    assert span.error_j is not None
