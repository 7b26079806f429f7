"""The forward pass of a stage: computed again, in fewer bits, and from random numbers that come again."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from greentrain.errors import UnavailableError, UsageError
from greentrain.runtime.devices import torch_device
from greentrain.runtime.forward import StageForward, random_seed
from greentrain.runtime.options import TrainingOptions
from greentrain.runtime.precision import LossScale, compute_type
from greentrain.workloads.workload import TensorSpec

CPU = torch.device("cpu")
SPEC = TensorSpec(shape=(6,), dtype=torch.float32, needs_gradient=True)


class Pair(nn.Module):
    """Two tensors in, two out, with dropout; counts how often it runs."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 6)
        self.dropout = nn.Dropout(0.5)
        self.runs_n = 0

    def forward(self, hidden: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        self.runs_n += 1
        return hidden + self.dropout(torch.tanh(self.linear(hidden))) * mask, mask


def make_blocks() -> list[Pair]:
    torch.manual_seed(0)
    return [Pair(), Pair(), Pair()]


def gradients(forward: StageForward, seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(4, 6, generator=generator).requires_grad_()
    mask = torch.tensor([[1.0], [0.0], [1.0], [1.0]])
    forward((hidden, mask), seed)[0].square().sum().backward()
    found = [hidden.grad, *(parameter.grad for block in forward.blocks for parameter in block.parameters())]
    assert all(gradient is not None for gradient in found)
    return [gradient for gradient in found if gradient is not None]


def test_what_is_computed_again_gives_the_same_gradients() -> None:
    kept, again = make_blocks(), make_blocks()
    expected = gradients(StageForward(kept, (SPEC, SPEC)), 5)
    found = gradients(StageForward(again, (SPEC, SPEC), recompute=True), 5)
    assert [block.runs_n for block in kept] == [1, 1, 1]
    assert [block.runs_n for block in again] == [2, 2, 2]
    for one, other in zip(expected, found, strict=True):
        assert torch.equal(one, other)


def test_random_numbers_follow_from_the_place_alone() -> None:
    forward = StageForward(make_blocks(), (SPEC, SPEC))
    inputs = (torch.ones(4, 6), torch.ones(4, 1))
    first = forward(inputs, random_seed(3, 0, 0, 1))[0]
    other = forward(inputs, random_seed(3, 0, 0, 2))[0]
    assert not torch.equal(first, other)
    assert torch.equal(first, forward(inputs, random_seed(3, 0, 0, 1))[0])
    assert random_seed(1, 23) != random_seed(12, 3)


def test_fewer_bits_inside_and_the_same_type_outside() -> None:
    blocks = make_blocks()
    inputs = (torch.randn(4, 6), torch.ones(4, 1))
    exact = StageForward(blocks, (SPEC, SPEC))(inputs, 1)
    rough = StageForward(blocks, (SPEC, SPEC), dtype=torch.bfloat16)(inputs, 1)
    assert [tensor.dtype for tensor in rough] == [torch.float32, torch.float32]
    assert not torch.equal(exact[0], rough[0])
    torch.testing.assert_close(exact[0], rough[0], rtol=0.1, atol=0.1)


def test_types_by_precision() -> None:
    assert compute_type("float32", CPU) is None
    assert compute_type("auto", CPU) is None
    assert compute_type("bf16", CPU) == torch.bfloat16
    assert compute_type("fp16", CPU) == torch.float16


def test_auto_takes_bfloat16_from_ampere_on(monkeypatch: pytest.MonkeyPatch) -> None:
    capability = (7, 2)

    def found(device: torch.device) -> tuple[int, int]:
        return capability

    monkeypatch.setattr(torch.cuda, "get_device_capability", found)
    assert compute_type("auto", torch.device("cuda", 0)) is None
    capability = (8, 7)
    assert compute_type("auto", torch.device("cuda", 0)) == torch.bfloat16


def test_the_loss_scale_falls_at_an_overflow_and_rises_in_the_end() -> None:
    weight = nn.Parameter(torch.ones(2))
    scale = LossScale(factor=8.0)
    weight.grad = torch.full((2,), 16.0)
    assert scale.undo([weight], 22.6)
    assert weight.grad.tolist() == [2.0, 2.0]
    assert not scale.undo([weight], math.inf)
    assert not scale.undo([weight], math.nan)
    assert (scale.factor, weight.grad.tolist()) == (2.0, [2.0, 2.0])
    weight.grad = None
    for _ in range(2000):
        assert scale.undo([weight], 1.0)
    assert scale.factor == 4.0


def test_loss_scale_and_thin_matrices_exclude_each_other() -> None:
    with pytest.raises(ValueError, match="exclude each other"):
        TrainingOptions(precision="fp16", compression="powersgd")
    assert TrainingOptions(precision="bf16").agreed == ", precision bf16"


def test_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert torch_device("auto") == torch.device("cuda", 0)
    assert torch_device("cuda:1") == torch.device("cuda", 1)
    assert torch_device("cpu") == CPU
    with pytest.raises(UnavailableError, match="sees 2 GPUs"):
        torch_device("cuda:2")
    for wrong in ("gpu", "cpu:0", "cuda:", "cuda:x"):
        with pytest.raises(UsageError, match="--torch-device"):
            torch_device(wrong)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert torch_device("auto") == CPU
