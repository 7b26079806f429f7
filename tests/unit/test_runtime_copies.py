"""Copies of weights and optimizer state: what is started from stays as it is."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from greentrain.errors import RunError
from greentrain.runtime.copies import Copies, Copy, Shelf
from greentrain.runtime.states import State


def _kept(folder: Path, layers: range, round_: int) -> Copy:
    copy = Copy(layers.start, layers.stop, round_, Shelf(folder))
    copy.write({f"{layer}.weight": torch.full((3,), float(layer)) for layer in layers if layer != 2})
    return copy


def test_a_part_is_read_of_those_layers_and_that_round(tmp_path: Path) -> None:
    copies = Copies([_kept(tmp_path, range(4), 5), _kept(tmp_path, range(4, 6), 5), _kept(tmp_path, range(6), 9)])
    assert {name: float(value[0]) for name, value in copies.part(5, 1, 5).items()} == {
        "1.weight": 1.0, "3.weight": 3.0, "4.weight": 4.0,
    }  # fmt: skip
    assert copies.part(7, 0, 6) == {}
    assert [(held.start, held.stop, held.round) for held in copies.holdings()] == [(0, 4, 5), (4, 6, 5), (0, 6, 9)]


def test_what_travels_in_parts_is_the_same_copy(tmp_path: Path) -> None:
    own = _kept(tmp_path, range(3), 5).shelf
    other = Shelf(tmp_path)
    for start in range(0, own.size, 100):
        other.append(own.read(start, min(start + 100, own.size)).numpy().data)
    assert float(Copy(0, 3, 5, other).part(1, 2)["1.weight"][0]) == 1.0


def test_copies_leave_neither_files_nor_descriptors(tmp_path: Path) -> None:
    copies = Copies([_kept(tmp_path, range(2), round_) for round_ in range(5)])
    open_n = len(list(Path("/proc/self/fd").iterdir()))
    assert list(tmp_path.iterdir()) == []
    copies.drop(before=2, after=3)
    assert [copy.round for copy in copies.kept] == [2, 3]
    assert len(list(Path("/proc/self/fd").iterdir())) == open_n - 3
    copies.clear()
    assert copies.kept == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux")
def test_a_full_disk_is_told_in_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shelf = Shelf(tmp_path)
    with Path("/dev/full").open("wb", buffering=0) as full, monkeypatch.context() as patch:
        patch.setattr(shelf, "_descriptor", full.fileno())
        with pytest.raises(RunError, match="the disk is full"):
            shelf.append(b"0")
    shelf.close()


def test_a_copy_stays_as_it_is_while_training_goes_on_from_it(tmp_path: Path) -> None:
    state: State = {"0.weight": torch.ones(3), "0.weight|momentum_buffer": torch.full((3,), 2.0)}
    copies = Copies([Copy(0, 1, 5, Shelf(tmp_path))])
    copies.kept[0].write(state)
    # An optimizer goes on with the very tensors that it is given.
    copies.part(5, 0, 1)["0.weight|momentum_buffer"].zero_()
    assert copies.part(5, 0, 1)["0.weight|momentum_buffer"].tolist() == [2.0, 2.0, 2.0]
