"""The gradient sum starts its buckets in one order, during the last backward, and takes absent gradients as zeros."""

from __future__ import annotations

import contextlib
from typing import cast

import pytest
import torch
from torch import Tensor, nn

from greentrain.runtime import gradient_sum
from greentrain.runtime.buckets import buckets_of
from greentrain.runtime.gradient_sum import GradientSum
from greentrain.runtime.group import RunGroup


class _Done:
    def wait(self) -> None:
        return None


class _Group:
    """A group in which another rank has the same gradients."""

    def __init__(self) -> None:
        self.stage_group = object()
        self.started: list[int] = []

    @contextlib.contextmanager
    def talking(self):
        yield

    def all_reduce(self, flat: Tensor, *, group: object, async_op: bool) -> _Done:
        assert group is self.stage_group
        assert async_op
        self.started.append(flat.numel())
        flat *= 2
        return _Done()


@pytest.fixture
def group(monkeypatch: pytest.MonkeyPatch) -> _Group:
    fake = _Group()
    monkeypatch.setattr(gradient_sum.dist, "all_reduce", fake.all_reduce)
    monkeypatch.setattr(gradient_sum, "BUCKET_BYTES", 16)
    return fake


def run_group(fake: _Group) -> RunGroup:
    return cast("RunGroup", fake)


def test_buckets_go_backwards_and_hold_one_type() -> None:
    sizes = [(3, torch.float32), (2, torch.float32), (1, torch.float64), (9, torch.float32), (1, torch.float32)]
    parameters = [nn.Parameter(torch.zeros(n, dtype=dtype)) for n, dtype in sizes]
    found = [[p.numel() for p in bucket.parameters] for bucket in buckets_of(parameters, 24)]
    assert found == [[1], [9], [1], [2, 3]]


def test_gradients_accumulate_in_the_buckets_and_are_summed_once(group: _Group) -> None:
    first, second, unused = (nn.Parameter(torch.full((4,), value)) for value in (2.0, 3.0, 5.0))
    summing = GradientSum([first, second, unused])
    for _ in range(2):  # The second round starts from zeros again.
        summing.clear()
        (first * second).sum().backward()
        summing.start(run_group(group))
        (first * second).sum().backward()
        summing.finish(run_group(group))
        assert [p.grad is not None and p.grad.tolist() for p in (first, second, unused)] == [[12] * 4, [8] * 4, [0] * 4]


def test_a_bucket_starts_in_the_backward_but_never_before_its_predecessor(group: _Group) -> None:
    parameters = [nn.Parameter(torch.ones(n)) for n in (1, 2, 3, 4)]
    summing = GradientSum(parameters)
    summing.clear()
    summing.start(run_group(group))
    # The last parameter's gradient comes first, as in a chain of layers.
    value = parameters[0].sum()
    for parameter in parameters[1:]:
        value = value * parameter.sum()
    value.backward()
    assert group.started == [4, 3, 3]  # The last bucket holds two parameters.
    summing.finish(run_group(group))
    assert group.started == [4, 3, 3]
    group.started.clear()
    summing.clear()
    summing.start(run_group(group))
    (parameters[2].sum() * parameters[0].sum() * parameters[1].sum()).backward()
    assert group.started == []  # The first bucket lacks its gradient.
    summing.finish(run_group(group))
    assert group.started == [4, 3, 3]


def test_a_round_that_was_given_up_leaves_nothing(group: _Group) -> None:
    weight = nn.Parameter(torch.ones(4))
    summing = GradientSum([weight])
    summing.clear()
    summing.start(run_group(group))
    weight.sum().backward()
    weight.grad = None
    summing.clear()
    summing.start(run_group(group))
    (2 * weight).sum().backward()
    summing.finish(run_group(group))
    assert weight.grad is not None
    assert weight.grad.tolist() == [4] * 4
    assert group.started == [4, 4]
