"""The tables of the rings' benchmark, from made-up times."""

from __future__ import annotations

import pytest

from greentrain_harness.bench.rings import hidden_ratio, layers_lines, overlap_lines, rings_lines


def test_hidden_is_what_the_shorter_does_not_add() -> None:
    assert hidden_ratio(3.0, 2.0, 3.0) == 1.0
    assert hidden_ratio(3.0, 2.0, 5.0) == 0.0
    assert hidden_ratio(1.0, 2.0, 2.2) == pytest.approx(0.8)


def test_rows_say_gain_over_the_better_of_gloo() -> None:
    case = {
        "size": 1048576.0, "own reduce_scatter": 0.08, "gloo reduce_scatter": 0.16, "gloo all_to_all + sum": 0.12,
        "own all_gather": 0.08, "gloo padded all_gather": 0.1, "gloo all_to_all": 0.2,
    }  # fmt: skip
    header, row = rings_lines((4, 3), [case], header=True)
    assert "reduce_scatter" in header
    assert row.split() == ["4:3", "1024", "80.0", "160.0", "120.0", "1.50x", "80.0", "100.0", "200.0", "1.25x"]


def test_rows_of_overlap_and_layers() -> None:
    parts = {"product": 0.3, "ring": 0.2, "apart": 0.5, "together": 0.3}
    case = {"size": 512.0, **{f"{kind}: {part}": s for kind in ("gather", "scatter") for part, s in parts.items()}}
    assert [row.split()[-1] for row in overlap_lines((1, 1), [case], header=False)] == ["100%", "100%"]
    ways = ("tensor, even shares, gloo", "tensor, gloo", "tensor", "sequence", "tensor+sequence, no overlap")
    layer = {"size": 64.0, **dict.fromkeys(ways, 0.3), "tensor, even shares, gloo": 0.5, "tensor+sequence": 0.2}
    assert layers_lines("10Mbit", [layer], header=False)[0].split()[-2:] == ["2.50x", "1.50x"]
