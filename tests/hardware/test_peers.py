"""RAPL through a tree mounted over /sys/class/powercap: this package beside unmodified codecarbon (and zeus)."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from pathlib import Path

import pytest

from greentrain_harness.bench._rapl_peers import PACKAGE, compare_rapl, rapl_peers


@pytest.mark.root
@pytest.mark.slow
@pytest.mark.parametrize("wraps", [False, True])
def test_all_tools_see_the_same_joules(wraps: bool, tmp_path: Path) -> None:
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        pytest.skip("needs root and unshare for mount namespaces")
    zeus = sys.executable if importlib.util.find_spec("zeus") is not None else None
    ours, *others = compare_rapl(tmp_path, rapl_peers(codecarbon=sys.executable, zeus=zeus), seconds=1.0, wraps=wraps)
    assert ours.fault == ""
    for zone, truth_j in ours.truth_j.items():
        assert ours.energy_j[zone] == pytest.approx(truth_j, rel=1e-3)
    codecarbon = others[0]
    assert codecarbon.fault == ""
    assert codecarbon.energy_j[PACKAGE] == pytest.approx(codecarbon.truth_j[PACKAGE], rel=1e-2)
    if zeus is not None and not wraps:
        assert others[1].energy_j[PACKAGE] == pytest.approx(others[1].truth_j[PACKAGE], rel=1e-3)
