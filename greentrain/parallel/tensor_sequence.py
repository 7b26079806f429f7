"""Sharing inside a sample: heads and columns, tokens, or both, with the rings that each way needs.

``tensor_sequence`` splits heads, columns and tokens in the same uneven proportion (Galaxy, arXiv 2405.17245). A
layer and pass has two rings per part, AllGather + GEMM and GEMM + ReduceScatter, of one tile per device: while a
device multiplies the tile that it holds, it sends it on and receives the next, so with g devices a ring takes
``c + (g−1)·max(c, x)``, c a tile's computing and x its transfer, and without that overlap ``g·c + (g−1)·x``.
``tensor`` (Megatron, arXiv 1909.08053) splits heads and columns only and needs an AllReduce per part and pass;
``sequence`` splits tokens only, replicates the weights and gathers keys and values, and on the way back sums their
gradients. On a shared medium the g tiles of a step follow one another. :mod:`greentrain.sharing` says which rings.
"""

from __future__ import annotations

from collections.abc import Sequence

from greentrain.cluster import Cluster
from greentrain.parallel.data import slowest_link
from greentrain.parallel.pipeline import largest
from greentrain.sharing import Direction, Ring, Sharing

__all__ = ["OVERLAP", "layer_pass_s", "ring_loads_s", "ring_part_bytes", "rings_s"]

# Whether tiles travel while others are computed; False gives the plain ring for comparison.
OVERLAP = True


def layer_pass_s(
    sharing: Sharing,
    cluster: Cluster,
    devices: Sequence[str],
    *,
    compute_s: float,
    ring_bytes: int,
    rings_n: int,
    rows: int,
    largest_part: float,
    overlap: bool = OVERLAP,
) -> float:
    """Seconds of one pass of a micro-batch through a layer, for the whole group.

    Seconds and the largest part may be arrays of one shape, one entry per candidate.

    Args:
        sharing: How the group shares; not ``samples``.
        cluster: Gives the slowest link inside the group.
        devices: The group.
        compute_s: Computing seconds of the slowest device for its part.
        ring_bytes: Bytes per sample of the tensor that the layer's rings carry.
        rings_n: Its rings in this pass; 0 for a layer that is computed whole.
        rows: Rows of the micro-batch.
        largest_part: Part of heads or tokens of the device that has most.
        overlap: Whether tiles travel while others are computed (``tensor_sequence`` only).
    """
    bandwidth, latency_s, shared = slowest_link(cluster, devices)
    group_n = len(devices)
    transfer_s = latency_s + largest_part * (group_n if shared else 1) * rows * ring_bytes / bandwidth
    if sharing != "tensor_sequence" or rings_n == 0:
        return compute_s + rings_n * (group_n - 1) * transfer_s
    tile_s = compute_s / rings_n / group_n
    step_s = largest(tile_s, transfer_s) if overlap else tile_s + transfer_s
    return rings_n * (tile_s + (group_n - 1) * step_s)


def rings_s(
    rings: Sequence[Ring],
    direction: Direction,
    cluster: Cluster,
    devices: Sequence[str],
    *,
    rows: int,
    largest_part: float,
) -> float:
    """Seconds of the rings of a pass that no computing hides; arguments as in :func:`layer_pass_s`."""
    return sum(
        layer_pass_s(
            "tensor", cluster, devices, compute_s=0.0, ring_bytes=ring.bytes, rings_n=ring.rings_n(direction),
            rows=rows, largest_part=largest_part,
        )
        for ring in rings
    )  # fmt: skip


def ring_part_bytes(ring_bytes: float, rows: int, group_n: int) -> float:
    """Bytes that a device of a group sends in one pass of a micro-batch, on average: (g−1)/g of the rings."""
    return ring_bytes * rows * (group_n - 1) / group_n


def ring_loads_s(cluster: Cluster, devices: Sequence[str], part_bytes: float) -> tuple[float, float]:
    """Seconds for which so many bytes per device occupy each member's port, and a shared medium."""
    if len(devices) == 1 or part_bytes == 0:
        return 0.0, 0.0
    bandwidth, _, shared = slowest_link(cluster, devices)
    return (0.0, len(devices) * part_bytes / bandwidth) if shared else (part_bytes / bandwidth, 0.0)
