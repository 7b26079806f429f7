"""The cases on which planners are judged: published layer profiles on clusters of catalogue devices.

Every second and joule here is modelled. Assumed, besides what :mod:`._planner_profiles` and the catalogue
assume: a layer's seconds scale with the catalogue's training rate of device and operating point; a pass costs
the catalogue's fixed time per profiled layer besides seconds that are proportional to the rows; an update moves
its bytes through memory; between the catalogue's power modes busy watts follow ``idle + rise·(c1·x + c3·x³)``
with x the clock over the default one; a wired port takes 10 nJ per byte, a wireless one 100 nJ.
"""

from __future__ import annotations

import csv
import hashlib
import itertools
import random
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from greentrain.cluster import Cluster, Link, Medium
from greentrain.cost import CostTables
from greentrain.device import Device, OperatingPoint, Provenance
from greentrain.errors import InfeasibleError, UnavailableError
from greentrain.objective import Objective, Optimizer, Problem
from greentrain.plan import Plan
from greentrain.planners.candidate import Part, assemble
from greentrain.power import PowerCurve, PowerModel, physical_curve
from greentrain.profile import LayerProfile, LayerTimes, ModelProfile
from greentrain.units import parse_quantity
from greentrain.version import VERSION
from greentrain_datasets.catalogue import CatalogueEntry, catalogue_device, catalogue_entry
from greentrain_harness.bench._planner_profiles import LayerChain, load_chains, merged

__all__ = [
    "BoardMode",
    "boards",
    "clusters",
    "load_chains",
    "load_modes",
    "make_cluster",
    "make_problem",
    "merged",
    "model_profile",
    "random_plan",
]

# Catalogue kind -> its name in the table of power modes.
_MODE_NAMES = {
    "jetson-nano-4gb": "Jetson Nano",
    "jetson-tx2-8gb": "Jetson TX2",
    "jetson-xavier-nx-8gb": "Jetson Xavier NX",
    "jetson-agx-xavier-32gb": "Jetson AGX Xavier",
    "jetson-orin-nano-8gb": "Jetson Orin Nano 8GB",
    "jetson-orin-nx-16gb": "Jetson Orin NX 16GB",
    "jetson-agx-orin-64gb": "Jetson AGX Orin",
}
# Short name -> catalogue kind.
_KINDS = {
    "nano": "jetson-nano-4gb",
    "tx2": "jetson-tx2-8gb",
    "nx": "jetson-xavier-nx-8gb",
    "agx": "jetson-agx-xavier-32gb",
    "orin-nano": "jetson-orin-nano-8gb",
    "orin-nx": "jetson-orin-nx-16gb",
    "agx-orin": "jetson-agx-orin-64gb",
    "pi": "raspberry-pi-5",
    "pc": "pc-rtx-3060-12gb",
    "laptop": "laptop-i7-1165g7",
}
# Clocks below the default where a device has fewer modes than wanted.
_CLOCK_STEPS = (0.85, 0.7, 0.55, 0.4)
_WIRED_J_PER_BYTE = 10e-9
_WIRELESS_J_PER_BYTE = 100e-9
_BATCHES = (1, 64)


class BoardMode(NamedTuple):
    """A power mode of a board that differs from its default in the GPU clock.

    Attributes:
        kind: Catalogue kind.
        name: The mode's name.
        gpu_hz: GPU clock.
    """

    kind: str
    name: str
    gpu_hz: float


def load_modes(data: Path) -> tuple[BoardMode, ...]:
    """Modes of ``power_modes/nvpmodel_modes.csv`` that state a clock and gate no more cores than mode 0.

    Raises:
        UnavailableError: The folder has no such file.
    """
    path = data / "power_modes" / "nvpmodel_modes.csv"
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
    except OSError as error:
        raise UnavailableError(f"{path}: {error.strerror}.", hint="Name the data folder with --data.") from error
    kinds = {name: kind for kind, name in _MODE_NAMES.items()}
    ungated = {row["device"]: row["tpc_pg_mask"] for row in rows if row["mode_id"] == "0"}
    return tuple(
        BoardMode(kinds[row["device"]], row["mode_name"], float(row["gpu_max_hz"]))
        for row in rows
        if row["device"] in kinds and row["tpc_pg_mask"] == ungated[row["device"]] and float(row["gpu_max_hz"] or 0) > 0
    )


def boards(name: str, count: int, *, points_n: int, modes: Sequence[BoardMode] = ()) -> tuple[Device, ...]:
    """Devices of a kind with so many operating points: the catalogue's, then the board's, then clock steps."""
    kind = _KINDS[name]
    entry = catalogue_entry(kind)
    base = catalogue_device(kind, name)
    curves = {curve.point: curve for curve in base.power.curves}
    default_hz = _clock_hz(base.points[0])
    wanted = [(mode.name, mode.gpu_hz) for mode in modes if mode.kind == kind]
    wanted += [(f"clock-{share:.0%}".replace("%", "pct"), share * default_hz) for share in _CLOCK_STEPS]
    points = list(base.points)
    for point_name, clock_hz in wanted:
        near = any(abs(clock_hz / _clock_hz(point) - 1) < 0.05 for point in points)
        if len(points) < points_n and not near and clock_hz < default_hz:
            points.append(_at_clock(base.points[0], point_name, clock_hz))
            curves[point_name] = _curve(entry, point_name, clock_hz / default_hz)
    points = points[:points_n]
    power = PowerModel(
        idle_w=base.power.idle_w,
        curves=tuple(curves[point.name] for point in points),
        source="modelled",
        provenance=base.power.provenance,
    )
    return tuple(
        msgspec.structs.replace(base, id=f"{name}-{number}", points=tuple(points), power=power)
        for number in range(1, count + 1)
    )


def _clock_hz(point: OperatingPoint) -> float:
    found = point.gpu_hz or point.cpu_hz
    assert found is not None
    return found


def _at_clock(default: OperatingPoint, name: str, clock_hz: float) -> OperatingPoint:
    if default.gpu_hz is None:
        return OperatingPoint(name=name, cpu_hz=clock_hz)
    return OperatingPoint(name=name, cpu_hz=default.cpu_hz, gpu_hz=clock_hz)


def _curve(entry: CatalogueEntry, point: str, clock_share: float) -> PowerCurve:
    rise_w = entry.points[0].busy_w - entry.idle_w
    cubic = entry.cubic_share
    busy_w = entry.idle_w + rise_w * ((1 - cubic) * clock_share + cubic * clock_share**3)
    return physical_curve(point=point, idle_w=entry.idle_w, busy_w=busy_w, cubic_share=cubic, fit="catalogue, clock")


def make_cluster(
    name: str, devices: Sequence[Device], *, bandwidth: str = "100Mbit", latency: str = "1ms", wireless: bool = False
) -> Cluster:
    """A cluster with one kind of link: switched and wired, or one shared wireless medium."""
    bandwidth_bytes_per_s = parse_quantity(bandwidth, "bandwidth", where=name)
    joules = _WIRELESS_J_PER_BYTE if wireless else _WIRED_J_PER_BYTE
    link = Link(
        src="*",
        dst="*",
        bandwidth_bytes_per_s=bandwidth_bytes_per_s,
        latency_s=parse_quantity(latency, "time", where=name),
        tx_j_per_byte=joules,
        rx_j_per_byte=joules,
        medium="air" if wireless else None,
    )
    media = (Medium(name="air", bandwidth_bytes_per_s=bandwidth_bytes_per_s),) if wireless else ()
    return Cluster(name=name, devices=tuple(devices), default_link=link, media=media)


def clusters(modes: Sequence[BoardMode] = ()) -> dict[str, Cluster]:
    """All clusters by name; without a table of modes clock steps take their place."""

    def some(points_n: int, **counts: int) -> tuple[Device, ...]:
        members = (
            boards(name.replace("_", "-"), count, points_n=points_n, modes=modes) for name, count in counts.items()
        )
        return tuple(itertools.chain.from_iterable(members))

    mixed = some(3, nano=3, tx2=2, nx=1)
    eight = some(4, nano=1, tx2=1, nx=1, agx=1, orin_nano=1, orin_nx=1, agx_orin=1, pi=1)
    found = [
        make_cluster("nano-4", some(2, nano=4)),
        make_cluster("xavier-6", some(3, nx=6), bandwidth="1Gbit", latency="0.1ms"),
        make_cluster("xavier-6-slow", some(3, nx=6), bandwidth="10Mbit", latency="5ms"),
        make_cluster("mixed-6", mixed),
        make_cluster("mixed-6-fast", mixed, bandwidth="1Gbit", latency="0.1ms"),
        make_cluster("mixed-6-slow", mixed, bandwidth="10Mbit", latency="5ms"),
        make_cluster("mixed-6-wifi", mixed, bandwidth="80Mbit", latency="5ms", wireless=True),
        make_cluster("different-4", some(4, nano=1, tx2=1, nx=1, orin_nano=1)),
        make_cluster("different-8", eight, bandwidth="1Gbit", latency="0.1ms"),
        make_cluster("different-8-slow", eight),
        make_cluster("pc-and-boards", some(3, pc=1, laptop=1, nano=2, orin_nano=1), bandwidth="1Gbit", latency="0.1ms"),
        _two_rooms(some(3, nano=2, tx2=2, orin_nano=2)),
        make_cluster("boards-64", some(2, nano=16, tx2=16, nx=16, orin_nano=16), bandwidth="1Gbit", latency="0.1ms"),
    ]
    return {cluster.name: cluster for cluster in found}


def _two_rooms(devices: Sequence[Device]) -> Cluster:
    """Gigabit inside a room, 100 Mbit/s between them, and one board behind 10 Mbit/s."""
    rooms = (devices[::2], devices[1::2])
    inside = [pair for room in rooms for pair in itertools.permutations((device.id for device in room), 2)]
    far = devices[-1].id
    base = make_cluster("two-rooms", devices)
    links = tuple(
        Link(
            src=src,
            dst=dst,
            bandwidth_bytes_per_s=1.25e6 if far in (src, dst) else 125e6,
            latency_s=5e-3 if far in (src, dst) else 1e-4,
            tx_j_per_byte=_WIRED_J_PER_BYTE,
            rx_j_per_byte=_WIRED_J_PER_BYTE,
        )
        for src, dst in inside
    )
    return msgspec.structs.replace(base, links=links)


def model_profile(chain: LayerChain, cluster: Cluster) -> ModelProfile:
    """A chain as a model with modelled layer times for every kind and point of a cluster."""
    layers = tuple(
        LayerProfile(
            name=layer.name,
            param_bytes=layer.param_bytes,
            activation_bytes=layer.cut_bytes,
            gradient_bytes=layer.cut_bytes,
            stash_bytes=layer.stash_bytes,
            forward_flop=layer.forward_s * chain.flop_per_s,
            heads=chain.heads if chain.block_n == 1 else 0,
            sequence=chain.tokens_n if chain.block_n == 1 else 0,
        )
        for layer in chain.layers
    )
    choices = {(device.kind, point.name): point for device in cluster.devices for point in device.points}
    structure = repr((chain.model, chain.layers)).encode()
    return ModelProfile(
        model=chain.model,
        structure_sha256=hashlib.sha256(structure).hexdigest(),
        layers=layers,
        input_bytes=chain.input_bytes,
        times=tuple(_times(chain, kind, point) for (kind, _), point in choices.items()),
    )


def _times(chain: LayerChain, kind: str, point: OperatingPoint) -> LayerTimes:
    entry = catalogue_entry(kind)
    default = entry.points[0]
    mode = next((known for known in entry.points if known.point.name == point.name), default)
    rate = mode.train_flop_per_s * _clock_hz(point) / _clock_hz(mode.point)
    slower = chain.flop_per_s / rate

    def pass_s_B(own_s: float, passes_n: int) -> tuple[float, ...]:
        return tuple(passes_n * entry.layer_overhead_s + slower * own_s * batch for batch in _BATCHES)

    return LayerTimes(
        model=chain.model,
        kind=kind,
        point=point.name,
        batch_B=_BATCHES,
        forward_s_LB=tuple(pass_s_B(layer.forward_s, layer.passes_n) for layer in chain.layers),
        backward_s_LB=tuple(pass_s_B(layer.backward_s, layer.passes_n) for layer in chain.layers),
        update_s_L=tuple(entry.update_traffic * layer.param_bytes / mode.memory_bytes_per_s for layer in chain.layers),
        provenance=Provenance(
            meter="none",
            source="modelled",
            command="greentrain_harness.bench._planner_cases",
            host=f"none; catalogue kind {kind} ({entry.title})",
            versions={"greentrain": VERSION},
            trials_n=0,
            note=f"{chain.source}, scaled from {chain.flop_per_s:.3g} to {rate:.3g} FLOP/s (assumed)",
        ),
    )


def make_problem(
    chain: LayerChain,
    cluster: Cluster,
    *,
    objective: Objective | None = None,
    batch: int | None = None,
    micro_batches: Sequence[int] | None = None,
    optimizer: Optimizer = "adam",
) -> Problem:
    """Train a chain on a cluster; rounds of 64 samples, of 256 where there are many devices."""
    many = len(cluster.devices) > 16
    return Problem(
        model=model_profile(chain, cluster),
        cluster=cluster,
        objective=objective or Objective(),
        batch=batch or (256 if many else 64),
        micro_batches=tuple(micro_batches or ((16, 64) if many else (4, 8, 16))),
        optimizer=optimizer,
    )


def random_plan(problem: Problem, rng: random.Random, *, tables: CostTables | None = None, tries_n: int = 400) -> Plan:
    """Some plan that fits the memory: random devices, groups, cuts, shares, points and micro-batch size.

    Every second one is balanced: layers by the groups' speed, rows by the devices'.

    Raises:
        InfeasibleError: None of the tries fits.
    """
    tables = tables or CostTables(problem)
    for _ in range(tries_n):
        micro_batch = rng.choice(problem.micro_batches)
        parts = _random_parts(problem, micro_batch, rng, tables, balanced=rng.random() < 0.5)
        plan = assemble(problem, "random", micro_batch, parts, tables)
        assert plan.estimate is not None
        if not plan.estimate.violations:
            return plan
    raise InfeasibleError(f"none of {tries_n} random plans fits the memory.", hint="Use larger devices.")


def _random_parts(
    problem: Problem, micro_batch: int, rng: random.Random, tables: CostTables, *, balanced: bool
) -> list[Part]:
    layers_n = len(problem.model.layers)
    devices = list(problem.cluster.devices)
    rng.shuffle(devices)
    devices = devices[: rng.randint(1, min(len(devices), 8))]
    groups: list[list[Device]] = []
    while devices and len(groups) < layers_n:
        size = min(rng.choice((1, 1, 1, 2, 2, 3, 4)), len(devices), micro_batch)
        groups.append(devices[:size])
        devices = devices[size:]
    points = [tuple(rng.choice(device.points).name for device in group) for group in groups]

    def speed(device: Device, point: str) -> float:
        return 1 / sum(tables.compute_s(device, point, 0, layers_n, micro_batch)) if balanced else rng.random() + 0.01

    weights = [
        [speed(device, point) for device, point in zip(group, chosen, strict=True)]
        for group, chosen in zip(groups, points, strict=True)
    ]
    work_L = [1.0] * layers_n
    if balanced:
        device, point = groups[0][0], points[0][0]
        work_L = [sum(tables.compute_s(device, point, at, at + 1, micro_batch)) for at in range(layers_n)]
    cuts = _cuts(work_L, [sum(own) for own in weights])
    return [
        Part(start, stop, tuple(device.id for device in group), _shares(micro_batch, own), chosen)
        for start, stop, group, own, chosen in zip(cuts, cuts[1:], groups, weights, points, strict=False)
    ]


def _cuts(work_L: Sequence[float], weights: Sequence[float]) -> list[int]:
    """Cuts (0, …, L) that give every group work in proportion to its weight, and at least one layer."""
    done_L = list(itertools.accumulate(work_L))
    cuts = [0]
    for index, upto in enumerate(itertools.accumulate(weights[:-1]), start=1):
        target = done_L[-1] * upto / sum(weights)
        nearest = min(range(len(done_L)), key=lambda at: abs(done_L[at] - target)) + 1
        cuts.append(min(max(nearest, cuts[-1] + 1), len(work_L) - len(weights) + index))
    return [*cuts, len(work_L)]


def _shares(rows: int, weights: Sequence[float]) -> tuple[int, ...]:
    """Whole rows in proportion to the weights, at least one each."""
    shares = [1] * len(weights)
    for _ in range(rows - len(shares)):
        chosen = min(range(len(shares)), key=lambda at: (shares[at] + 1) / weights[at])
        shares[chosen] += 1
    return tuple(shares)
