"""Compressed gradient sums of two replicas in one process: bytes, exactness, what is left out comes later."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor, nn

from greentrain.errors import UsageError
from greentrain.runtime.buckets import Bucket, buckets_of
from greentrain.runtime.compression import Exactly, Halves, ThinMatrices, Travel, travel_of
from greentrain.runtime.options import TrainingOptions, parse_compression
from greentrain_datasets.loaders import load_dataset


class _Done:
    def wait(self) -> None:
        return None


@dataclass
class Replica:
    """One rank's bucket and its way of travelling."""

    bucket: Bucket
    travel: Travel
    messages: list[Tensor] = field(default_factory=list[Tensor])

    def send(self, message: Tensor) -> _Done:
        self.messages.append(message)
        return _Done()

    @property
    def payload_bytes(self) -> int:
        return sum(message.nbytes for message in self.messages)


def sum_over(replicas: list[Replica], *, give_up_after: int | None = None) -> None:
    """Take all replicas through one sum in step; ``give_up_after`` messages a round may be cut."""
    going = [replica.travel.steps(replica.bucket, replica.send) for replica in replicas]
    number = 0
    while True:
        # Every one goes on, also when the first has ended.
        works = [next(steps, None) for steps in going]
        if None in works:
            return
        number += 1
        if number == give_up_after:
            return
        messages = [replica.messages[-1] for replica in replicas]
        total = torch.stack(messages).sum(0)
        for message in messages:
            message.copy_(total)


def make_replicas(options: TrainingOptions, shapes: list[tuple[int, ...]]) -> list[Replica]:
    found: list[Replica] = []
    for _ in range(2):
        (bucket,) = buckets_of([nn.Parameter(torch.zeros(shape)) for shape in shapes], 1 << 30)
        found.append(Replica(bucket, travel_of(options)))
    return found


def fill(replicas: list[Replica], seed: int, scale: float = 1.0) -> Tensor:
    """Random gradients; returns their exact sum."""
    generator = torch.Generator().manual_seed(seed)
    for replica in replicas:
        replica.bucket.flat.copy_(torch.randn(replica.bucket.flat.shape, generator=generator) * scale)
    return replicas[0].bucket.flat + replicas[1].bucket.flat


HALF = TrainingOptions(compression="fp16")
THIN = TrainingOptions(compression="powersgd", compression_rank=2)


@pytest.mark.parametrize("scale", [1e-6, 1e-3, 1.0])
def test_halves_are_half_the_bytes_and_nearly_exact(scale: float) -> None:
    replicas = make_replicas(HALF, [(40, 30), (7,)])
    exact = fill(replicas, 0, scale)
    sum_over(replicas)
    for replica in replicas:
        assert replica.payload_bytes == replica.bucket.flat.nbytes // 2
        torch.testing.assert_close(replica.bucket.flat, exact, rtol=2e-3, atol=2e-3 * scale)
    assert torch.equal(replicas[0].bucket.flat, replicas[1].bucket.flat)


def test_what_fits_no_half_travels_as_it_is() -> None:
    replicas = make_replicas(HALF, [(5,)])
    exact = fill(replicas, 1, scale=200.0)  # Fits with a smaller scale only.
    sum_over(replicas)
    assert torch.equal(replicas[0].bucket.flat, exact)
    assert replicas[0].payload_bytes == exact.nbytes * 3 // 2
    for _ in range(4):  # The scale falls until it fits.
        exact = fill(replicas, 1, scale=200.0)
        replicas[0].messages.clear()
        sum_over(replicas)
    assert replicas[0].payload_bytes == exact.nbytes // 2
    torch.testing.assert_close(replicas[1].bucket.flat, exact, rtol=2e-3, atol=1.0)


def test_thin_matrices_are_exact_for_gradients_of_their_rank() -> None:
    replicas = make_replicas(THIN, [(30, 20), (7,)])
    generator = torch.Generator().manual_seed(0)
    left = torch.randn(30, 2, generator=generator)
    exact = torch.zeros(607)
    for replica in replicas:
        replica.bucket.gradients[1].copy_(left @ torch.randn(2, 20, generator=generator))
        replica.bucket.gradients[0].fill_(1.0)
        exact += replica.bucket.flat
    sum_over(replicas)
    torch.testing.assert_close(replicas[0].bucket.flat, exact, rtol=1e-4, atol=1e-4)
    assert replicas[0].payload_bytes == 4 * (7 + 2 * 30 + 2 * 20)
    assert torch.equal(replicas[0].bucket.flat, replicas[1].bucket.flat)


def test_what_thin_matrices_leave_out_comes_later() -> None:
    replicas = make_replicas(THIN, [(30, 20)])
    wanted, arrived = torch.zeros(600), torch.zeros(600)
    errors: list[float] = []
    for _ in range(60):
        wanted += fill(replicas, 5)  # The same gradient in every round.
        sum_over(replicas)
        arrived += replicas[0].bucket.flat
        errors.append(float((wanted - arrived).norm() / wanted.norm()))
    assert errors[-1] < 0.15 < 0.5 < errors[0]


@pytest.mark.parametrize("options", [HALF, THIN])
def test_a_round_that_is_given_up_changes_nothing(options: TrainingOptions) -> None:
    whole, torn = make_replicas(options, [(30, 20)]), make_replicas(options, [(30, 20)])
    for seed in range(3):
        for cut in (1, 2):
            fill(torn, 100 + seed, scale=1e4)
            sum_over(torn, give_up_after=cut)
        for replicas in (whole, torn):
            fill(replicas, seed)
            sum_over(replicas)
        assert torch.equal(whole[0].bucket.flat, torn[0].bucket.flat)


@pytest.mark.parametrize("options", [TrainingOptions(), HALF, THIN])
def test_digits_are_learnt(options: TrainingOptions) -> None:
    """Two replicas of a small network, each with half of every batch."""
    data = load_dataset("digits")
    inputs, targets = torch.from_numpy(data.train_inputs[0]), torch.from_numpy(data.train_targets)
    test, labels = torch.from_numpy(data.test_inputs[0]), torch.from_numpy(data.test_targets)
    replicas: list[tuple[nn.Module, torch.optim.Optimizer, Replica]] = []
    for _ in range(2):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
        (bucket,) = buckets_of(list(net.parameters()), 1 << 30)
        replicas.append((net, torch.optim.Adam(net.parameters(), lr=5e-3), Replica(bucket, travel_of(options))))
    for step in range(200):
        chosen = torch.randperm(len(targets), generator=torch.Generator().manual_seed(step))[:64]
        for number, (net, _, replica) in enumerate(replicas):
            rows = chosen[32 * number : 32 * number + 32]
            replica.bucket.clear()
            (nn.functional.cross_entropy(net(inputs[rows]), targets[rows]) / 2).backward()
        sum_over([replica for _, _, replica in replicas])
        for _, optimizer, _ in replicas:
            optimizer.step()
    with torch.no_grad():
        right = (replicas[0][0](test).argmax(1) == labels).float().mean()
    print(right)
    assert right > 0.93
    for one, other in zip(replicas[0][0].parameters(), replicas[1][0].parameters(), strict=True):
        assert torch.equal(one, other)


def test_options_are_read_and_told() -> None:
    assert parse_compression("none") == ("none", 4)
    assert parse_compression("powersgd:2") == ("powersgd", 2)
    assert TrainingOptions().agreed == ""
    assert THIN.agreed == ", gradients as powersgd of rank 2"
    assert isinstance(travel_of(TrainingOptions()), Exactly)
    assert isinstance(travel_of(HALF), Halves)
    assert isinstance(travel_of(THIN), ThinMatrices)
    for wrong in ("powersgd:0", "powersgd:", "half", "none:1", ""):
        with pytest.raises(UsageError, match="--compress"):
            parse_compression(wrong)
