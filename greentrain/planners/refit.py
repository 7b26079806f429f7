"""What a running job teaches the planner: where measured and predicted disagree, and the problem corrected by it."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from greentrain._checks import require_non_negative, require_positive
from greentrain.cluster import Cluster, Link
from greentrain.cost import estimate
from greentrain.device import Device
from greentrain.objective import Problem
from greentrain.plan import Estimate, Plan
from greentrain.power import PowerCurve, PowerModel
from greentrain.profile import LayerTimes

__all__ = ["DeviceSeen", "RoundSeen", "disagreements", "refitted"]

# Half-width of the band around a predicted time, and around joules whose power has no stated band.
_BAND_RATIO = 0.15
# Networks are neither slowed nor sped up beyond this when a round's time has to be explained.
_MOST_NETWORK_FACTOR = 16.0
_BISECTIONS_N = 40


class DeviceSeen(msgspec.Struct, frozen=True, kw_only=True):
    """What a device did in a usual round.

    Attributes:
        busy_s: Seconds in which it computed.
        energy_j: Its joules; None when its meter did not tell.
    """

    busy_s: float
    energy_j: float | None = None

    def __post_init__(self) -> None:
        require_non_negative(busy_s=self.busy_s, energy_j=self.energy_j)


class RoundSeen(msgspec.Struct, frozen=True, kw_only=True):
    """A usual round of a running job: medians over its last rounds.

    Attributes:
        step_s: Seconds of the round.
        devices: By device of the plan.
    """

    step_s: float
    devices: dict[str, DeviceSeen]

    def __post_init__(self) -> None:
        require_positive(step_s=self.step_s)


def disagreements(plan: Plan, problem: Problem, seen: RoundSeen) -> tuple[str, ...]:
    """Where a round lies outside the band around its prediction, in words; empty when it does not."""
    price = estimate(plan, problem)
    found: list[str] = []
    if _beyond(seen.step_s, price.step_s, _BAND_RATIO):
        found.append(f"the round takes {seen.step_s:.4g} s, predicted {price.step_s:.4g} s")
    for name, device_seen in seen.devices.items():
        predicted_j = sum(price.energy_j[name].values())
        band_ratio = _energy_band_ratio(plan, problem, name)
        if device_seen.energy_j is not None and _beyond(device_seen.energy_j, predicted_j, band_ratio):
            found.append(f"{name} takes {device_seen.energy_j:.4g} J a round, predicted {predicted_j:.4g} J")
    return tuple(found)


def _beyond(seen: float, predicted: float, band_ratio: float) -> bool:
    return abs(seen - predicted) > band_ratio * predicted


def _energy_band_ratio(plan: Plan, problem: Problem, name: str) -> float:
    """Part by which a device's joules may differ: its time's band and that of its busy power."""
    stage = next(stage for stage in plan.stages if name in stage.devices)
    curve = problem.cluster.device(name).curve(stage.points[stage.devices.index(name)])
    band_w = curve.band_at_w(1.0)
    return _BAND_RATIO + (band_w / curve.busy_w if band_w is not None and curve.busy_w > 0 else 0.0)


def refitted(plan: Plan, problem: Problem, seen: RoundSeen) -> Problem:
    """The problem as the running job shows it.

    Each participant's layer times are scaled to the seconds in which it really computed; what then remains of the
    round's time is laid on the network, all links alike; each participant's power is scaled to its joules. The
    scales hold for all operating points of the device, as the job visits one of them only.

    Args:
        plan: What runs.
        problem: What it was made for.
        seen: A usual round of it.
    """
    priced = estimate(plan, problem)
    slower = {
        name: device_seen.busy_s / priced.busy_s[name]
        for name, device_seen in seen.devices.items()
        if device_seen.busy_s > 0 and priced.busy_s[name] > 0
    }
    problem = _with_times(problem, slower)
    problem = _with_network(plan, problem, seen.step_s)
    return _with_power(problem, estimate(plan, problem), seen)


def _with_times(problem: Problem, factors: Mapping[str, float]) -> Problem:
    """Each device gets a kind of its own, with times by a factor of those of the old kind."""
    times: list[LayerTimes] = list(problem.model.times)
    devices: list[Device] = []
    for device in problem.cluster.devices:
        factor = factors.get(device.id)
        if factor is None:
            devices.append(device)
            continue
        kind = f"{device.kind}.{device.id}"
        times += [
            msgspec.structs.replace(
                known,
                kind=kind,
                forward_s_LB=_scaled(known.forward_s_LB, factor),
                backward_s_LB=_scaled(known.backward_s_LB, factor),
                update_s_L=tuple(factor * update_s for update_s in known.update_s_L),
            )
            for known in problem.model.times
            if known.kind == device.kind
        ]
        devices.append(msgspec.structs.replace(device, kind=kind))
    cluster = msgspec.structs.replace(problem.cluster, devices=tuple(devices))
    return msgspec.structs.replace(problem, cluster=cluster, model=problem.model.with_times(times))


def _scaled(times_s_LB: tuple[tuple[float, ...], ...], factor: float) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(factor * seconds for seconds in row) for row in times_s_LB)


def _with_network(plan: Plan, problem: Problem, step_s: float) -> Problem:
    """Links slowed (or sped up) together until the plan's round takes as long as it was seen to take."""
    if len(plan.devices) == 1:
        return problem

    def round_s(factor: float) -> float:
        slowed = msgspec.structs.replace(problem, cluster=_slowed(problem.cluster, factor))
        return estimate(plan, slowed).step_s

    low, high = 1 / _MOST_NETWORK_FACTOR, _MOST_NETWORK_FACTOR
    for _ in range(_BISECTIONS_N):
        middle = (low * high) ** 0.5
        # A round's time never falls when the network slows.
        low, high = (middle, high) if round_s(middle) < step_s else (low, middle)
    factor = (low * high) ** 0.5
    at_an_end = factor < 1.01 / _MOST_NETWORK_FACTOR or factor > _MOST_NETWORK_FACTOR / 1.01
    if at_an_end and abs(round_s(1.0) - step_s) <= abs(round_s(factor) - step_s):
        return problem  # The network does not explain it.
    return msgspec.structs.replace(problem, cluster=_slowed(problem.cluster, factor))


def _slowed(cluster: Cluster, factor: float) -> Cluster:
    def slower(link: Link) -> Link:
        return msgspec.structs.replace(
            link, bandwidth_bytes_per_s=link.bandwidth_bytes_per_s / factor, latency_s=link.latency_s * factor
        )

    return msgspec.structs.replace(
        cluster,
        default_link=slower(cluster.default_link),
        links=tuple(slower(link) for link in cluster.links),
        media=tuple(
            msgspec.structs.replace(medium, bandwidth_bytes_per_s=medium.bandwidth_bytes_per_s / factor)
            for medium in cluster.media
        ),
    )


def _with_power(problem: Problem, price: Estimate, seen: RoundSeen) -> Problem:
    devices: list[Device] = []
    for device in problem.cluster.devices:
        device_seen = seen.devices.get(device.id)
        predicted_j = sum(price.energy_j.get(device.id, {}).values())
        if device_seen is None or device_seen.energy_j is None or predicted_j <= 0:
            devices.append(device)
            continue
        power = _scaled_power(device.power, device_seen.energy_j / predicted_j)
        devices.append(msgspec.structs.replace(device, power=power))
    return msgspec.structs.replace(problem, cluster=msgspec.structs.replace(problem.cluster, devices=tuple(devices)))


def _scaled_power(power: PowerModel, factor: float) -> PowerModel:
    """Power at the device's points by a factor; what it draws when it takes no part stays."""

    def scaled(curve: PowerCurve) -> PowerCurve:
        return msgspec.structs.replace(
            curve,
            power_w_X=tuple(factor * watts for watts in curve.power_w_X),
            band_w=None if curve.band_w is None else factor * curve.band_w,
            band_w_X=None if curve.band_w_X is None else tuple(factor * watts for watts in curve.band_w_X),
        )

    return msgspec.structs.replace(power, curves=tuple(scaled(curve) for curve in power.curves))
