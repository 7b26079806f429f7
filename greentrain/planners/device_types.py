"""Interchangeable devices counted instead of named: 3 Nano + 2 TX2 + 1 NX are 24 count vectors, not 64 subsets.

Axis legend: T device types, U count vectors ("used"), in mixed radix with the first type running fastest.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import msgspec
import numpy as np

from greentrain.cost import over_cap_w
from greentrain.device import Device
from greentrain.objective import Objective, Problem

__all__ = ["DeviceTypes", "allowed_points", "device_types"]


@dataclass(frozen=True, kw_only=True)
class DeviceTypes:
    """The devices of a problem by type.

    Attributes:
        names_T: Device ids of each type, in the order of the cluster.
        device_T: One device of each type.
        uniform: Whether all links are the cluster's default link.
    """

    names_T: tuple[tuple[str, ...], ...]
    device_T: tuple[Device, ...]
    uniform: bool

    @property
    def vectors_n(self) -> int:
        """Number of count vectors, the empty one included."""
        return prod(len(names) + 1 for names in self.names_T)

    def pooled(self) -> DeviceTypes:
        """All devices as one type, with the memory of the largest: what none of them can do, none of these can."""
        roomiest = max(self.device_T, key=lambda device: device.memory_bytes)
        names = tuple(name for names in self.names_T for name in names)
        return DeviceTypes(names_T=(names,), device_T=(roomiest,), uniform=self.uniform)

    def counts_UT(self) -> np.ndarray:
        """Every count vector, shape (U, T); row u is the vector of number u."""
        numbers_U = np.arange(self.vectors_n)
        columns: list[np.ndarray] = []
        for names in self.names_T:
            columns.append(numbers_U % (len(names) + 1))
            numbers_U = numbers_U // (len(names) + 1)
        return np.stack(columns, axis=1)

    def type_of(self, device: str) -> int:
        """The type that a device belongs to."""
        return next(index for index, names in enumerate(self.names_T) if device in names)

    def without(self, device: str) -> DeviceTypes:
        """The same types without one device."""
        kept = [
            (tuple(n for n in names if n != device), own)
            for names, own in zip(self.names_T, self.device_T, strict=True)
        ]
        return DeviceTypes(
            names_T=tuple(names for names, _ in kept if names),
            device_T=tuple(own for names, own in kept if names),
            uniform=self.uniform,
        )

    def without_UU(self) -> np.ndarray:
        """The number of the vector u − v, or −1 where v takes more than u has, shape (U, U)."""
        counts_UT = self.counts_UT()
        left_UUT = counts_UT[:, None, :] - counts_UT[None, :, :]
        strides_T = np.cumprod([1, *(len(names) + 1 for names in self.names_T[:-1])])
        return np.where((left_UUT >= 0).all(axis=2), left_UUT @ strides_T, -1).astype(np.int32)


def allowed_points(device: Device, objective: Objective) -> list[str]:
    """The device's operating points within its power cap."""
    return [point.name for point in device.points if over_cap_w(device, point.name, objective) <= 0]


def device_types(problem: Problem) -> DeviceTypes:
    """Group the devices that no term of the cost model can tell apart.

    A device that an explicit link names is a type of its own. Devices whose power cap is below all of their
    operating points are left out.
    """
    cluster, objective = problem.cluster, problem.objective
    linked = {end for link in cluster.links for end in (link.src, link.dst)}
    groups: dict[object, list[Device]] = {}
    for device in cluster.devices:
        if not allowed_points(device, objective):
            continue
        limits = (objective.power_cap_w.get(device.id), objective.device_budget_j.get(device.id))
        own = device.id if device.id in linked else None
        nameless = msgspec.structs.replace(device, id=device.kind)
        key = (nameless, limits, own)
        groups.setdefault(repr(key), []).append(device)
    return DeviceTypes(
        names_T=tuple(tuple(device.id for device in members) for members in groups.values()),
        device_T=tuple(members[0] for members in groups.values()),
        uniform=not cluster.links,
    )
