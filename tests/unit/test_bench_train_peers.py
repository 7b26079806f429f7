"""The table of the training benchmark pairs greentrain with what ran right after it."""

from __future__ import annotations

import torch
from split_cases import make_plan, toy

from greentrain_harness.bench.train_peers import table


def test_ratios_are_medians_of_pairs() -> None:
    plan, _ = make_plan("data-accumulated", toy(torch.float32))
    # A machine that slows down for both in the second repetition changes no ratio.
    found = {"greentrain data": [100.0, 50.0, 110.0], "ddp": [80.0, 40.0, 100.0]}
    lines = table(found, {"data-equal": plan}, "here").splitlines()
    assert lines[1].startswith("data, batch 12, micro-batch 3")
    own, ddp = lines[2].split(), lines[3].split()
    assert own[:3] == ["greentrain", "data", "100.0"]
    assert own[-1] == "110.0)"
    assert ddp[:2] == ["ddp", "80.0"]
    assert ddp[-1] == "1.250"


def test_a_method_without_its_counterpart_has_no_ratio() -> None:
    plan, _ = make_plan("pipeline-2", toy(torch.float32))
    assert table({"1f1b": [10.0]}, {"pipeline": plan}, "here").splitlines()[-1].endswith("10.0 (10.0 to 10.0)")
