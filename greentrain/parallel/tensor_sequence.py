"""Sharing inside a sample: heads and columns, tokens, or both, with the rings that each way needs.

``tensor_sequence`` splits heads, columns and tokens in the same uneven proportion (Galaxy, arXiv 2405.17245). A
layer and pass has four rings, two AllGather + GEMM and two GEMM + ReduceScatter, of one tile per device: while a
device multiplies the tile that it holds, it sends it on and receives the next, so with g devices a ring takes
``c + (g−1)·max(c, x)``, c a tile's computing and x its transfer, and without that overlap ``g·c + (g−1)·x``.
``tensor`` (Megatron, arXiv 1909.08053) splits heads and columns only and needs two AllReduces per layer and pass;
``sequence`` splits tokens only, replicates the weights and passes keys and values around, and on the way back
their gradients too. On a shared medium the g tiles of a step follow one another.
"""

from __future__ import annotations

from collections.abc import Sequence

from greentrain.cluster import Cluster
from greentrain.parallel.data import slowest_link
from greentrain.parallel.pipeline import largest
from greentrain.plan import Sharing

__all__ = ["OVERLAP", "pass_s", "ring_loads_s"]

# Whether tiles travel while others are computed; False gives the plain ring for comparison.
OVERLAP = True

_RINGS_N = 4
# Keys and values; on the way back their gradients besides.
_KEYS_AND_VALUES = {"forward": 2, "backward": 4}


def pass_s(
    sharing: Sharing,
    cluster: Cluster,
    devices: Sequence[str],
    *,
    direction: str,
    compute_s_L: Sequence[float],
    activation_bytes_L: Sequence[int],
    rows: int,
    largest_part: float,
    overlap: bool = OVERLAP,
) -> float:
    """Seconds of one pass of a micro-batch through a group's layers, for the whole group.

    Seconds and the largest part may be arrays of one shape, one entry per candidate.

    Args:
        sharing: How the group shares; not ``samples``.
        cluster: Gives the slowest link inside the group.
        devices: The group.
        direction: ``forward`` or ``backward``.
        compute_s_L: Per layer the computing seconds of the slowest device for its part.
        activation_bytes_L: Bytes per sample of the layers' activations.
        rows: Rows of the micro-batch.
        largest_part: Part of heads or tokens of the device that has most.
        overlap: Whether tiles travel while others are computed (``tensor_sequence`` only).
    """
    bandwidth, latency_s, shared = slowest_link(cluster, devices)
    group_n = len(devices)
    messages_n = group_n if shared else 1
    total_s = 0.0
    for compute_s, size in zip(compute_s_L, activation_bytes_L, strict=True):
        whole_s = messages_n * rows * size / bandwidth
        if sharing == "tensor_sequence":
            tile_s = compute_s / _RINGS_N / group_n
            transfer_s = latency_s + largest_part * whole_s
            step_s = largest(tile_s, transfer_s) if overlap else tile_s + transfer_s
            total_s += _RINGS_N * (tile_s + (group_n - 1) * step_s)
        elif sharing == "tensor":
            total_s += compute_s + 2 * 2 * (group_n - 1) * (latency_s + whole_s / group_n)
        else:
            carried_s = _KEYS_AND_VALUES[direction] * largest_part * whole_s
            total_s += compute_s + (group_n - 1) * (latency_s + carried_s)
    return total_s


def ring_loads_s(cluster: Cluster, devices: Sequence[str], part_bytes: float) -> tuple[float, float]:
    """Seconds for which so many bytes per device occupy each member's port, and a shared medium."""
    if len(devices) == 1 or part_bytes == 0:
        return 0.0, 0.0
    bandwidth, _, shared = slowest_link(cluster, devices)
    return (0.0, len(devices) * part_bytes / bandwidth) if shared else (part_bytes / bandwidth, 0.0)
