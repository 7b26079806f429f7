"""Random small problems for the planner, cost and simulator tests."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence

import msgspec

from greentrain.cluster import Cluster, Link, Medium
from greentrain.device import Device, OperatingPoint, Provenance
from greentrain.objective import Objective, Problem
from greentrain.plan import Plan, Sharing, Stage, in_flight_limit, shares_total, stage_bytes
from greentrain.planners.candidate import Part
from greentrain.power import PowerModel, physical_curve
from greentrain.profile import LayerProfile, LayerTimes, ModelProfile, RingProfile

PROVENANCE = Provenance(meter="none", source="modelled", command="test", host="test", versions={}, trials_n=1)


def make_device(name: str, *, kind: str, points: int, memory_bytes: int, idle_w: float, busy_w: float) -> Device:
    names = [f"p{index}" for index in range(points)]
    curves = tuple(
        physical_curve(
            point=point,
            idle_w=idle_w,
            busy_w=idle_w + (busy_w - idle_w) * (1 - 0.3 * index),
            cubic_share=0.5,
            fit="test",
        )
        for index, point in enumerate(names)
    )
    return Device(
        id=name,
        kind=kind,
        memory_bytes=memory_bytes,
        points=tuple(OperatingPoint(name=point) for point in names),
        power=PowerModel(idle_w=idle_w * 0.8, curves=curves, source="modelled", provenance="test"),
    )


def make_problem(
    seed: int,
    *,
    devices: int = 3,
    layers: int = 4,
    points: int = 1,
    batch: int = 8,
    micro_batches: tuple[int, ...] = (2, 4),
    objective: Objective | None = None,
    memory_bytes: int = 1 << 40,
) -> Problem:
    """A problem with random but plausible layers, speeds, watts and links; the same for the same seed."""
    rng = random.Random(seed)
    profiles = tuple(
        LayerProfile(
            name=f"layer{index}",
            param_bytes=rng.randrange(1_000, 400_000),
            activation_bytes=(size := rng.randrange(1_000, 200_000)),
            gradient_bytes=size,
            stash_bytes=rng.randrange(10_000, 500_000),
            forward_flop=1e6,
        )
        for index in range(layers)
    )
    times: list[LayerTimes] = []
    members: list[Device] = []
    sizes = tuple(sorted({1, *micro_batches}))
    for number in range(devices):
        kind = f"kind{number}"
        busy_w = rng.uniform(4, 30)
        members.append(
            make_device(
                f"d{number}",
                kind=kind,
                points=points,
                memory_bytes=memory_bytes,
                idle_w=busy_w * rng.uniform(0.1, 0.6),
                busy_w=busy_w,
            )
        )
        for point in range(points):
            speed = rng.uniform(0.5, 8) * (1 - 0.25 * point)
            rows = [[(0.002 + 0.004 * size) * rng.uniform(0.6, 1.4) / speed for size in sizes] for _ in range(layers)]
            monotone = tuple(tuple(sorted(row)) for row in rows)
            times.append(
                LayerTimes(
                    model="toy",
                    kind=kind,
                    point=f"p{point}",
                    batch_B=sizes,
                    forward_s_LB=monotone,
                    backward_s_LB=tuple(tuple(2 * value for value in row) for row in monotone),
                    update_s_L=tuple(0.001 / speed for _ in range(layers)),
                    provenance=PROVENANCE,
                )
            )
    bandwidth = rng.choice([1.25e6, 12.5e6, 125e6])
    link = Link(
        src="*", dst="*", bandwidth_bytes_per_s=bandwidth, latency_s=rng.choice([0.0, 0.0005, 0.003]),
        tx_j_per_byte=rng.choice([0.0, 2e-8]), rx_j_per_byte=rng.choice([0.0, 1e-8]),
    )  # fmt: skip
    slow = Link(src="d0", dst="d1", bandwidth_bytes_per_s=bandwidth / 3, latency_s=0.001)
    return Problem(
        model=ModelProfile(
            model="toy", structure_sha256="0" * 64, layers=profiles, input_bytes=256, times=tuple(times)
        ),
        cluster=Cluster(
            name="toy", devices=tuple(members), default_link=link, links=(slow,) if devices > 1 and seed % 2 else ()
        ),
        objective=objective or Objective(),
        batch=batch,
        micro_batches=micro_batches,
        optimizer="adam",
    )  # fmt: skip


def with_random_network(problem: Problem, rng: random.Random) -> Problem:
    """The same devices on links that differ per direction, or partly on one shared medium."""
    names = [device.id for device in problem.cluster.devices]
    base = problem.cluster.default_link
    medium = Medium(name="air", bandwidth_bytes_per_s=base.bandwidth_bytes_per_s * rng.uniform(0.4, 2.0))
    wireless = rng.random() < 0.5
    links = tuple(
        Link(
            src=src,
            dst=dst,
            bandwidth_bytes_per_s=base.bandwidth_bytes_per_s * rng.uniform(0.2, 3.0),
            latency_s=rng.choice([0.0, 0.002]),
            tx_j_per_byte=rng.choice([0.0, 5e-8]),
            rx_j_per_byte=rng.choice([0.0, 3e-8]),
            duplex_j_per_byte=rng.choice([None, None, 8e-8]),
            medium="air" if wireless and rng.random() < 0.7 else None,
        )
        for src in names
        for dst in names
        if src != dst and rng.random() < 0.8
    )
    return msgspec.structs.replace(
        problem, cluster=msgspec.structs.replace(problem.cluster, links=links, media=(medium,))
    )


def with_heads(problem: Problem, *, heads: int = 4, sequence: int = 12, plain_layers: int = 0) -> Problem:
    """The same problem with layers that can be shared inside a sample, but for some at the beginning."""
    layers = tuple(
        msgspec.structs.replace(layer, heads=heads, sequence=sequence) if index >= plain_layers else layer
        for index, layer in enumerate(problem.model.layers)
    )
    return msgspec.structs.replace(problem, model=msgspec.structs.replace(problem.model, layers=layers))


def with_transformer(problem: Problem, rng: random.Random, *, heads: int = 4, sequence: int = 12) -> Problem:
    """Layers that can be shared inside a sample among some that every device computes whole.

    Some cuts carry other tensors besides the hidden state, with gradients or without; the first layers may be frozen.
    """
    layers: list[LayerProfile] = []
    frozen_n = rng.choice([0, 0, 1])
    for index, layer in enumerate(problem.model.layers):
        token_bytes = rng.randrange(1, 4_000)
        hidden_bytes, side_bytes = sequence * token_bytes, rng.choice([0, 0, rng.randrange(1, 20_000)])
        back_bytes = rng.choice([hidden_bytes, hidden_bytes, hidden_bytes + side_bytes])
        if index < frozen_n:
            layer, back_bytes = msgspec.structs.replace(layer, param_bytes=0, frozen_bytes=layer.param_bytes), 0
        rings = RingProfile(
            hidden_bytes=hidden_bytes, key_value_bytes=sequence * rng.randrange(1, 4_000), parts_n=rng.choice([2, 3]),
            sum_bytes=layer.param_bytes // 50,
        )  # fmt: skip
        layers.append(
            msgspec.structs.replace(
                layer, heads=heads if rng.random() < 0.7 else 0, sequence=sequence,
                activation_bytes=hidden_bytes + side_bytes, gradient_bytes=back_bytes,
                rings=rings if rng.random() < 0.8 else None,
            )
        )  # fmt: skip
    if not any(layer.heads for layer in layers):
        layers[0] = msgspec.structs.replace(layers[0], heads=heads)
    return msgspec.structs.replace(problem, model=msgspec.structs.replace(problem.model, layers=tuple(layers)))


def with_busy_network(problem: Problem, rng: random.Random) -> Problem:
    """The same problem on devices whose processors have work with every message, some of them."""
    devices = tuple(
        msgspec.structs.replace(
            device, network_s_per_byte=rng.choice([None, 5e-9, 5e-8, 5e-7]), duplex_s_per_byte=rng.choice([None, 1e-7])
        )
        for device in problem.cluster.devices
    )
    return msgspec.structs.replace(problem, cluster=msgspec.structs.replace(problem.cluster, devices=devices))


def with_memory(problem: Problem, memory_bytes: int) -> Problem:
    """The same problem on devices with so much memory each."""
    devices = tuple(msgspec.structs.replace(device, memory_bytes=memory_bytes) for device in problem.cluster.devices)
    return msgspec.structs.replace(problem, cluster=msgspec.structs.replace(problem.cluster, devices=devices))


def with_sleep(problem: Problem, rng: random.Random) -> Problem:
    """The same devices; some can sleep, and some take time and energy to wake."""

    def sleeping(device: Device) -> Device:
        power = msgspec.structs.replace(device.power, sleep_w=rng.choice([None, 0.1, 0.5]))
        wake = rng.choice([(None, None), (2.0, 5.0), (10.0, 300.0)])
        return msgspec.structs.replace(device, power=power, wake_s=wake[0], wake_j=wake[1])

    members = tuple(sleeping(device) for device in problem.cluster.devices)
    return msgspec.structs.replace(problem, cluster=msgspec.structs.replace(problem.cluster, devices=members))


def with_slow_updates(problem: Problem, rng: random.Random) -> Problem:
    """Optimizer steps that differ much by layer, so that the tails of the stages matter."""
    times = (
        msgspec.structs.replace(entry, update_s_L=tuple(value * rng.choice([1, 30, 100]) for value in entry.update_s_L))
        for entry in problem.model.times
    )
    return msgspec.structs.replace(problem, model=problem.model.with_times(times))


def random_plan(
    problem: Problem, rng: random.Random, *, largest_group: int = 3, sharings: Sequence[Sharing] = ("samples",)
) -> Plan:
    """Some valid plan: random devices, groups, cuts, ways to share, shares, points and micro-batch size, unpriced."""
    micro_batch = rng.choice(problem.micro_batches)
    names = [device.id for device in problem.cluster.devices]
    rng.shuffle(names)
    groups: list[tuple[str, ...]] = []
    while names and len(groups) < len(problem.model.layers) and (not groups or rng.random() < 0.7):
        size = min(rng.randint(1, largest_group), len(names), micro_batch)
        groups.append(tuple(names[:size]))
        names = names[size:]
    cuts = random_parts(len(problem.model.layers), len(groups), rng)
    parts: list[Part] = []
    for group, layers_n in zip(groups, cuts, strict=True):
        start = parts[-1].stop if parts else 0
        layers = problem.model.layers[start : start + layers_n]
        points = tuple(rng.choice(problem.cluster.device(name).points).name for name in group)
        possible: list[Sharing] = [way for way in sharings if shares_total(way, layers, micro_batch) >= len(group)]
        if len(group) == 1 or not possible:
            possible = ["samples"]
        sharing = rng.choice(possible)
        shares = random_parts(shares_total(sharing, layers, micro_batch), len(group), rng)
        parts.append(Part(start, start + layers_n, group, shares, points, sharing))
    return plan_of(problem, micro_batch, parts)


def random_parts(total: int, parts_n: int, rng: random.Random) -> tuple[int, ...]:
    """Whole numbers of at least 1 that add up to ``total``."""
    cuts = [0, *sorted(rng.sample(range(1, total), parts_n - 1)), total]
    return tuple(high - low for low, high in itertools.pairwise(cuts))


def plan_of(problem: Problem, micro_batch: int, parts: Sequence[Part]) -> Plan:
    """A plan from its parts, written without the planners' help."""
    stages: list[Stage] = []
    for index, part in enumerate(parts):
        after = parts[index + 1].sharing if index + 1 < len(parts) else None
        stages.append(
            Stage(
                start=part.start,
                stop=part.stop,
                devices=part.devices,
                sharing=part.sharing,
                shares=part.shares,
                points=part.points,
                in_flight=in_flight_limit(len(parts), index, problem.batch // micro_batch),
                **stage_bytes(problem.model.layers, part.start, part.stop, part.sharing, after)._asdict(),
            )
        )
    return Plan(
        model=problem.model.model, structure_sha256=problem.model.structure_sha256, cluster=problem.cluster.name,
        planner="test", objective=problem.objective, batch=problem.batch, micro_batch=micro_batch,
        optimizer=problem.optimizer, stages=tuple(stages),
    )  # fmt: skip
