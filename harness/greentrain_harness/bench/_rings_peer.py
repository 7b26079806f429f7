"""One node of the rings' benchmark: times what it is asked for together with the other nodes.

Run as a program on every node: ``python -m greentrain_harness.bench._rings_peer TASK RANK HOST:PORT``, TASK as JSON.
Node 0 prints one JSON object per case, times in seconds: of the slowest node, and the shortest of several trials, since
what else the machine does only adds to it.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

import msgspec
import torch
import torch.distributed as dist
from torch import Tensor, nn

from greentrain.runtime.collectives import Bounds, Ring, share_bounds
from greentrain.runtime.split_layer import Seat, split_blocks
from greentrain.sharing import Sharing
from greentrain.workloads.minilm_reviews import WIDTH, EncoderLayer
from greentrain.workloads.workload import TensorSpec, run_blocks

__all__ = ["Task", "main"]


class Task(msgspec.Struct, frozen=True, kw_only=True):
    """What to time.

    Attributes:
        kind: ``rings``, ``overlap`` or ``layers``.
        shares: Of the nodes.
        sizes: Bytes of the whole tensor (``rings``), output columns of the product (``overlap``), tokens (``layers``).
        trials_n: Trials per case.
        layers_n: Layers of the model (``layers``).
    """

    kind: str
    shares: tuple[int, ...]
    sizes: tuple[int, ...]
    trials_n: int
    layers_n: int = 2


def main(argv: list[str]) -> int:
    """Time the cases; returns the exit status."""
    text, rank, address = argv
    task = msgspec.json.decode(text, type=Task)
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://{address}", rank=int(rank), world_size=len(task.shares))
    group = dist.group.WORLD
    assert group is not None
    ring = Ring(group)
    cases = {"rings": _rings, "overlap": _overlap, "layers": _layers}[task.kind]
    with torch.no_grad():
        for size in task.sizes:
            found = {"size": float(size), **dict(cases(task, size, ring))}
            if rank == "0":
                sys.stdout.write(f"{msgspec.json.encode(found).decode()}\n")
                sys.stdout.flush()
    ring.finish()
    dist.barrier()
    ring.close()
    dist.destroy_process_group()
    return 0


Timed = Iterator[tuple[str, float]]


def _shortest_s(work: Callable[[], object], trials_n: int) -> float:
    """Seconds of the slowest node in the best trial."""
    work()
    best_s = float("inf")
    for _ in range(trials_n):
        dist.barrier()
        start_s = time.perf_counter()
        work()
        taken_s = torch.tensor(time.perf_counter() - start_s, dtype=torch.float64)
        dist.all_reduce(taken_s, op=dist.ReduceOp.MAX)
        best_s = min(best_s, float(taken_s))
    return best_s


def _rings(task: Task, size: int, ring: Ring) -> Timed:
    """Own rings beside what gloo has for uneven shards."""
    rows = 16 * sum(task.shares)
    whole = torch.ones(rows, max(size // 4 // rows, 1))
    bounds = share_bounds(task.shares, rows)
    first, last = bounds[ring.position]
    own = whole[first:last].clone()
    counts = [stop - start for start, stop in bounds]
    stock = _Stock(whole, own, counts)
    works: dict[str, Callable[[], object]] = {
        "own reduce_scatter": lambda: ring.reduce_scatter(lambda low, high: whole[low:high], bounds, like=whole),
        "gloo reduce_scatter": stock.reduce_scatter,
        "gloo all_to_all + sum": stock.all_to_all_sum,
        "own all_gather": lambda: ring.all_gather(own, bounds),
        "gloo padded all_gather": stock.padded_all_gather,
        "gloo all_to_all": stock.all_to_all,
        "own all_reduce": lambda: ring.all_reduce(lambda low, high: whole[low:high], bounds, like=whole),
        "gloo all_reduce": stock.all_reduce,
    }
    for name, work in works.items():
        yield name, _shortest_s(work, task.trials_n)


class _Stock:
    """The same with gloo's collectives."""

    def __init__(self, whole: Tensor, own: Tensor, counts: list[int]) -> None:
        self.whole, self.own, self.counts = whole, own, counts
        self.size = len(counts)

    def reduce_scatter(self) -> Tensor:
        total = torch.empty_like(self.own)
        dist.reduce_scatter(total, [part.clone() for part in self.whole.split(self.counts)])
        return total

    def all_to_all_sum(self) -> Tensor:
        parts = self.own.new_empty(self.size * len(self.own), self.own.shape[1])
        dist.all_to_all_single(parts, self.whole, [len(self.own)] * self.size, self.counts)
        return parts.view(self.size, *self.own.shape).sum(0)

    def padded_all_gather(self) -> Tensor:
        longest = max(self.counts)
        padded = self.own.new_zeros(longest, self.own.shape[1])
        padded[: len(self.own)] = self.own
        parts = [torch.empty_like(padded) for _ in self.counts]
        dist.all_gather(parts, padded)
        return torch.cat([part[:count] for part, count in zip(parts, self.counts, strict=True)])

    def all_reduce(self) -> None:
        dist.all_reduce(self.whole.clone())

    def all_to_all(self) -> Tensor:
        whole = torch.empty_like(self.whole)
        dist.all_to_all_single(whole, self.own.repeat(self.size, 1), self.counts, [len(self.own)] * self.size)
        return whole


_ROWS_N = 1536
_WIDTH = 512


def _overlap(task: Task, columns: int, ring: Ring) -> Timed:
    """A product with its ring in front or behind: each alone, one after the other, and together."""
    bounds = share_bounds(task.shares, _ROWS_N)
    first, last = bounds[ring.position]
    whole, wide = torch.randn(_ROWS_N, _WIDTH), torch.randn(_ROWS_N, columns)
    own, into, back = whole[first:last].clone(), torch.randn(_WIDTH, columns), torch.randn(columns, _WIDTH)
    product = torch.empty(_ROWS_N, columns)

    def use(low: int, high: int, rows: Tensor) -> None:
        torch.mm(rows, into, out=product[low:high])

    def part(low: int, high: int) -> Tensor:
        return wide[low:high] @ back

    def plain(low: int, high: int) -> Tensor:
        return whole[low:high]

    yield "gather: product", _shortest_s(lambda: torch.mm(whole, into, out=product), task.trials_n)
    yield "gather: ring", _shortest_s(lambda: ring.all_gather(own, bounds), task.trials_n)
    yield "scatter: product", _shortest_s(lambda: wide @ back, task.trials_n)
    yield "scatter: ring", _shortest_s(lambda: ring.reduce_scatter(plain, bounds, like=whole), task.trials_n)
    for name, overlap in (("apart", False), ("together", True)):
        ring.overlap = overlap
        yield f"gather: {name}", _shortest_s(lambda: ring.all_gather(own, bounds, use=use), task.trials_n)
        yield (
            f"scatter: {name}",
            _shortest_s(lambda: ring.reduce_scatter(part, bounds, like=whole), task.trials_n),
        )


def _layers(task: Task, tokens: int, ring: Ring) -> Timed:
    """One sample's forward pass through Transformer layers, in every way to share them out."""
    even = (1,) * ring.size
    ways: dict[str, tuple[Sharing, tuple[int, ...], bool, bool]] = {
        "tensor, even shares, gloo": ("tensor", even, True, True),
        "tensor, gloo": ("tensor", task.shares, True, True),
        "tensor": ("tensor", task.shares, False, True),
        "sequence": ("sequence", _tokens(task.shares, tokens), False, True),
        "tensor+sequence, no overlap": ("tensor_sequence", task.shares, False, False),
        "tensor+sequence": ("tensor_sequence", task.shares, False, True),
    }
    hidden = torch.randn(1, tokens, WIDTH)
    mask = torch.ones(1, tokens, dtype=torch.uint8)
    specs = (
        TensorSpec(shape=(tokens, WIDTH), dtype=torch.float32, needs_gradient=True),
        TensorSpec(shape=(tokens,), dtype=torch.uint8, needs_gradient=False),
    )
    for name, (sharing, shares, stock, overlap) in ways.items():
        blocks: list[nn.Module] = [EncoderLayer(index) for index in range(task.layers_n)]
        seat = Seat(sharing, shares, ring.position, ring, stock=stock)
        own = split_blocks(blocks, [specs] * task.layers_n, 0, task.layers_n, seat)
        ring.overlap = overlap
        yield name, _shortest_s(lambda own=own: run_blocks(own, (hidden, mask)), task.trials_n)


def _tokens(shares: tuple[int, ...], tokens: int) -> tuple[int, ...]:
    bounds: Bounds = share_bounds(shares, tokens)
    return tuple(last - first for first, last in bounds)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(main(sys.argv[1:]))
