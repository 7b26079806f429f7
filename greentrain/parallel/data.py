"""Data parallelism: a group shares the rows of every micro-batch, in uneven shares.

Each device's gradient is weighted by its rows before it is *summed* over the group; a plain mean of
means would be wrong for uneven shares.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from greentrain.cluster import Cluster
from greentrain.parallel.pipeline import largest

__all__ = [
    "allocate_shares",
    "equal_shares",
    "exposed_sum_s",
    "gradient_sum_air_s",
    "gradient_sum_busy_s",
    "gradient_sum_bytes",
    "gradient_sum_s",
    "gradient_sum_wire_s",
    "slowest_link",
]


def slowest_link(cluster: Cluster, devices: Sequence[str]) -> tuple[float, float, bool]:
    """Least bandwidth and largest latency inside a group, and whether any link shares a medium.

    Returns:
        (bytes per second, seconds, shared).
    """
    links = [cluster.link(src, dst) for src in devices for dst in devices if src != dst]
    return (
        min(cluster.bandwidth_bytes_per_s(link) for link in links),
        max(link.latency_s for link in links),
        any(link.medium is not None for link in links),
    )


def gradient_sum_bytes(group_n: int, param_bytes: int) -> float:
    """Bytes that each device of a ring AllReduce sends (and receives): ``2(g−1)/g · W``."""
    return 2 * (group_n - 1) / group_n * param_bytes if group_n > 1 else 0.0


def gradient_sum_s(cluster: Cluster, devices: Sequence[str], param_bytes: int) -> float:
    """Seconds of the ring AllReduce of a group's gradients: those of the wire, or of the busiest processor."""
    return max(gradient_sum_wire_s(cluster, devices, param_bytes), gradient_sum_busy_s(cluster, devices, param_bytes))


def exposed_sum_s(ready_s_L: Iterable[float], wire_s_L: Iterable[float], busy_s: float) -> float:
    """Seconds of a gradient sum that its group's last backward does not hide.

    A layer's gradients leave once its backward and all behind it are done on every device, so those of the first
    layers are never hidden. The processor's part is not either: it competes with the backward. Figures may be arrays of
    one shape, one entry per candidate.

    Args:
        ready_s_L: The slowest device's backward seconds of a micro-batch through a layer and all behind it.
        wire_s_L: Seconds for which the gradients of a layer and all before it occupy the wire.
        busy_s: Seconds of the busiest processor.
    """
    both_L = iter(zip(ready_s_L, wire_s_L, strict=True))
    backward_s, wire_s = next(both_L)
    end_s = backward_s + wire_s
    for ready_s, wire_s in both_L:
        end_s = largest(end_s, ready_s + wire_s)
    return largest(end_s - backward_s, busy_s)


def gradient_sum_busy_s(cluster: Cluster, devices: Sequence[str], param_bytes: int) -> float:
    """Seconds in which the busiest processor of a group handles what it sends and receives in the ring AllReduce."""
    slowest_s_per_byte = max(cluster.device(name).group_s_per_byte for name in devices)
    return slowest_s_per_byte * 2 * gradient_sum_bytes(len(devices), param_bytes)


def gradient_sum_wire_s(cluster: Cluster, devices: Sequence[str], param_bytes: int) -> float:
    """Seconds for which the ring AllReduce occupies the wire: ``2(g−1)/g · W / min bw`` and 2(g−1) latencies.

    On a shared medium all g devices' messages follow one another (Asteroid, arXiv 2408.08015, with the
    medium added).
    """
    group_n = len(devices)
    if group_n == 1 or param_bytes == 0:
        return 0.0
    bandwidth, latency_s, shared = slowest_link(cluster, devices)
    transfer_s = gradient_sum_bytes(group_n, param_bytes) / bandwidth
    return transfer_s * (group_n if shared else 1) + 2 * (group_n - 1) * latency_s


def gradient_sum_air_s(cluster: Cluster, devices: Sequence[str], param_bytes: int) -> float:
    """Seconds for which the ring AllReduce occupies a shared medium; 0 on a switched network."""
    group_n = len(devices)
    if group_n == 1 or param_bytes == 0:
        return 0.0
    bandwidth, _, shared = slowest_link(cluster, devices)
    return gradient_sum_bytes(group_n, param_bytes) * group_n / bandwidth if shared else 0.0


def equal_shares(rows: int, devices_n: int) -> tuple[int, ...]:
    """Equally many rows per device, the first devices one more where it does not divide."""
    whole, rest = divmod(rows, devices_n)
    return tuple(whole + (index < rest) for index in range(devices_n))


def allocate_shares(rows: int, time_s_DR: Sequence[Sequence[float]], limit_D: Sequence[int]) -> tuple[int, ...] | None:
    """Share rows so that the slowest device is as fast as possible, within each device's limit.

    Every device gets at least one row; then rows go one by one to the device that ends first with it.
    For times that rise with the rows this minimises the maximum.

    Args:
        rows: Rows to share out.
        time_s_DR: Seconds of device d for r rows, r from 0 to ``rows``.
        limit_D: Most rows that fit each device's memory.

    Returns:
        Rows per device, or None when the limits are too small or there are fewer rows than devices.
    """
    shares = [1] * len(time_s_DR)
    if rows < len(shares) or any(limit < 1 for limit in limit_D) or sum(limit_D) < rows:
        return None
    for _ in range(rows - len(shares)):
        open_devices = [d for d in range(len(shares)) if shares[d] < limit_D[d]]
        chosen = min(open_devices, key=lambda d: (time_s_DR[d][shares[d] + 1], d))
        shares[chosen] += 1
    return tuple(shares)
