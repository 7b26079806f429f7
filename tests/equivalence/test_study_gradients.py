"""The study's own check: every way to share work gives the unsplit model's gradients on real processes."""

from __future__ import annotations

import pytest

from greentrain.study import WAYS
from greentrain.workloads import load_workload
from greentrain_harness.profilers.layers import profile_model
from greentrain_harness.study.gradients import verified

pytestmark = pytest.mark.timeout(240)


def test_all_ways_are_verified() -> None:
    rows = verified([profile_model(load_workload("digits-vit"))])
    assert {row.way for row in rows} == set(WAYS) - {"single"}
    assert all(row.devices_n == 3 for row in rows)
    for row in rows:
        assert row.equal, row
        # Another order of adding up is not no difference at all: something was really split.
        assert row.largest_difference_ratio > 0, row
