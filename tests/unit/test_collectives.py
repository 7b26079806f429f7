"""Rings over uneven shards: right sums, exact bytes, pieces in order, and errors that come through."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Generator

import pytest
import torch
from rings import on_ring
from torch import Tensor

from greentrain.errors import RunError
from greentrain.runtime.collectives import Bounds, Ring, even_bounds, share_bounds

SHARES = [(1, 1), (3, 1), (4, 3, 2, 1), (1, 0, 5), (0, 7)]


def addend(position: int, rows: int, width: int, dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(position)
    return torch.randn(rows, width, generator=generator, dtype=torch.float64).to(dtype)


def tile_bytes(bounds: Bounds, width: int, dtype: torch.dtype) -> list[int]:
    return [(last - first) * width * dtype.itemsize for first, last in bounds]


@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("shares", SHARES)
def test_reduce_scatter_sums_and_counts(shares: tuple[int, ...], dtype: torch.dtype, overlap: bool) -> None:
    rows, width = 37, 1200
    bounds = share_bounds(shares, rows)
    addends = [addend(position, rows, width, dtype) for position in range(len(shares))]

    def work(ring: Ring) -> tuple[Tensor, int]:
        ring.overlap = overlap
        own = addends[ring.position]
        kept = own.clone()
        total = ring.reduce_scatter(lambda first, last: own[first:last], bounds, like=own)
        ring.finish()
        assert torch.equal(own, kept)
        return total, ring.sent_bytes

    whole = torch.stack(addends).double().sum(0)
    sizes = tile_bytes(bounds, width, dtype)
    for position, (total, sent) in enumerate(on_ring(len(shares), work)):
        first, last = bounds[position]
        limit = {torch.float64: 1e-14, torch.float32: 1e-6, torch.bfloat16: 5e-2}[dtype]
        assert total.shape == (last - first, width)
        assert torch.allclose(total.double(), whole[first:last], atol=limit * 8)
        assert sent == sum(sizes) - sizes[position]


@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize("shares", SHARES)
def test_all_gather_hands_over_each_row_once(shares: tuple[int, ...], overlap: bool) -> None:
    rows, width = 37, 1200
    bounds = share_bounds(shares, rows)
    whole = addend(0, rows, width, torch.float64)

    def work(ring: Ring) -> int:
        ring.overlap = overlap
        seen = torch.zeros(rows)

        def use(first: int, last: int, piece: Tensor) -> None:
            assert torch.equal(piece, whole[first:last])
            seen[first:last] += 1

        done: list[int] = []
        first, last = bounds[ring.position]
        meanwhile = [lambda number=number: done.append(number) for number in range(3)]
        assert torch.equal(ring.all_gather(whole[first:last], bounds, use=use, meanwhile=meanwhile), whole)
        assert bool((seen == 1).all())
        assert done == [0, 1, 2]
        return ring.sent_bytes

    sizes = tile_bytes(bounds, width, torch.float64)
    sent = on_ring(len(shares), work)
    assert sent == [sum(sizes) - sizes[(position + 1) % len(sizes)] for position in range(len(sizes))]


def test_many_rings_in_a_row_do_not_mix_up() -> None:
    """Sends of one ring may still be leaving when the next starts."""
    shares = (2, 5, 1)

    def work(ring: Ring) -> bool:
        good = True
        for number in range(30):
            rows = 3 + 7 * number
            bounds = share_bounds(shares, rows) if number % 2 else even_bounds(3, rows)
            own = torch.full((rows, 3), float(ring.position + 1 + number))
            total = ring.all_reduce(lambda first, last, own=own: own[first:last], bounds, like=own)
            good &= bool((total == 6 + 3 * number).all())
        return good

    assert all(on_ring(3, work))


def test_an_empty_tensor_passes() -> None:
    def work(ring: Ring) -> tuple[int, ...]:
        like = torch.empty(0, 4)
        ring.reduce_scatter(lambda first, last: like[first:last], even_bounds(2, 0), like=like)
        wide = torch.empty(5, 0)
        return tuple(ring.all_reduce(lambda first, last: wide[first:last], even_bounds(2, 5), like=wide).shape)

    assert on_ring(2, work) == [(5, 0), (5, 0)]


def test_all_pieces_are_computed_while_nothing_arrives() -> None:
    """Device 0 computes all its addends before device 1 has begun: computing does not wait for the neighbour."""
    computed = threading.Event()
    bounds = even_bounds(2, 64)

    def work(ring: Ring) -> int:
        pieces: list[int] = []
        if ring.position == 1:
            assert computed.wait(20)

        def part(first: int, last: int) -> Tensor:
            pieces.append(last - first)
            if ring.position == 0 and sum(pieces) == 64:
                computed.set()
            return torch.ones(last - first, 4096)

        ring.reduce_scatter(part, bounds, like=torch.empty(0, 4096))
        return len(pieces)

    assert all(pieces > 2 for pieces in on_ring(2, work))


def test_a_lost_neighbour_is_reported_through_the_guard() -> None:
    @contextlib.contextmanager
    def guard() -> Generator[None, None, None]:
        try:
            yield
        except RuntimeError as error:
            raise RunError("lost") from error

    def work(ring: Ring) -> bool:
        if ring.position == 1:
            return True  # Says nothing.
        ring.guard = guard
        with pytest.raises(RunError, match="lost"):
            ring.all_gather(torch.ones(2, 4), even_bounds(2, 4))
        with pytest.raises(RunError, match="lost"):
            ring.reduce_scatter(
                lambda first, last: torch.ones(last - first, 4), even_bounds(2, 4), like=torch.ones(0, 4)
            )
        return True

    assert on_ring(2, work, timeout_s=0.5) == [True, True]


def test_an_error_in_computing_comes_through() -> None:
    def work(ring: Ring) -> bool:
        def part(first: int, last: int) -> Tensor:
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            ring.reduce_scatter(part, even_bounds(2, 4), like=torch.empty(0, 4))
        return True

    assert all(on_ring(2, work))


def test_bounds_add_up_and_follow_the_shares() -> None:
    assert share_bounds((4, 3, 2, 1), 10) == ((0, 4), (4, 7), (7, 9), (9, 10))
    assert share_bounds((3, 1), 7) == ((0, 5), (5, 7))
    assert even_bounds(3, 2) == ((0, 0), (0, 1), (1, 2))
