"""Copies of weights and optimizer state: what is started from stays as it is."""

from __future__ import annotations

import pytest
import torch

from greentrain.runtime.states import Copies, Copy, State, encode


@pytest.mark.parametrize("arrived", [False, True])
def test_a_copy_stays_as_it_is_while_training_goes_on_from_it(*, arrived: bool) -> None:
    state: State = {"0.weight": torch.ones(3), "0.weight|momentum_buffer": torch.full((3,), 2.0)}
    copies = Copies([Copy(0, 1, 5, encode(state) if arrived else state)])
    # An optimizer goes on with the very tensors that it is given.
    copies.part(5, 0, 1)["0.weight|momentum_buffer"].zero_()
    assert copies.part(5, 0, 1)["0.weight|momentum_buffer"].tolist() == [2.0, 2.0, 2.0]
