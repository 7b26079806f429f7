"""How long the ports of a group are busy with a byte of every row at least, whatever its shares and its neighbours.

Axis legend: U count vectors, Z classes of groups with like ports.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from greentrain.objective import Problem
from greentrain.planners.device_types import DeviceTypes
from greentrain.planners.span_tables import SpanTables

__all__ = ["Ports", "in_classes", "least_ports"]

# Groups whose ports differ are put in so many classes at most, each with the figures of its fastest.
_MOST_CLASSES = 16


class Ports(NamedTuple):
    """Least seconds per byte of a row, a micro-batch of them, through the busiest port of each group.

    Attributes:
        in_s_U: On the way in.
        out_s_U: On the way out.
        air_s: Through the shared medium; 0 on a switched network.
    """

    in_s_U: np.ndarray
    out_s_U: np.ndarray
    air_s: float


def least_ports(
    problem: Problem, types: DeviceTypes, spans: SpanTables, counts_UT: np.ndarray, *, by_rows: bool
) -> Ports:
    """Least seconds per byte of a row, whatever the shares and the groups on the other side."""
    cluster = problem.cluster
    none_U = np.zeros(len(counts_UT))
    size_U = np.maximum(counts_UT.sum(axis=1), 1)
    if types.uniform:
        bandwidth = cluster.bandwidth_bytes_per_s(cluster.default_link)
        if cluster.default_link.medium is not None:
            return Ports(none_U, none_U, spans.micro_batch / bandwidth)
        rows_U = -(-spans.units // size_U) * spans.step if by_rows else spans.micro_batch / size_U
        return Ports(rows_U / bandwidth, rows_U / bandwidth, 0.0)
    if any(link.medium is not None for link in (cluster.default_link, *cluster.links)):
        return Ports(none_U, none_U, 0.0)
    in_s_U, out_s_U = none_U.copy(), none_U.copy()
    for number, counts in enumerate(counts_UT.tolist()):
        own = [name for count, names in zip(counts, types.names_T, strict=True) for name in names[:count]]
        others = [name for names in types.names_T for name in names if name not in own]
        if own and others:
            in_s_U[number] = spans.micro_batch / sum(_widest(problem, others, [name]) for name in own)
            out_s_U[number] = spans.micro_batch / sum(_widest(problem, [name], others) for name in own)
    return Ports(in_s_U, out_s_U, 0.0)


def _widest(problem: Problem, senders: Sequence[str], receivers: Sequence[str]) -> float:
    cluster = problem.cluster
    return max(cluster.bandwidth_bytes_per_s(cluster.link(src, dst)) for src in senders for dst in receivers)


def in_classes(ports: Ports) -> tuple[np.ndarray, Ports]:
    """A class for each group, and the ports with the figures of the fastest group of its class."""
    both_U2 = np.stack([ports.in_s_U, ports.out_s_U], axis=1)
    found_Z2, class_U = np.unique(both_U2, axis=0, return_inverse=True)
    class_U = class_U.reshape(-1)
    if len(found_Z2) > _MOST_CLASSES:
        class_U = class_U * _MOST_CLASSES // len(found_Z2)
    for class_ in range(int(class_U.max()) + 1):
        own = class_U == class_
        both_U2[own] = both_U2[own].min(axis=0)
    return class_U, Ports(both_U2[:, 0], both_U2[:, 1], ports.air_s)
