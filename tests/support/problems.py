"""Random small problems for the planner, cost and simulator tests."""

from __future__ import annotations

import random

from greentrain.cluster import Cluster, Link
from greentrain.device import Device, OperatingPoint, Provenance
from greentrain.objective import Objective, Problem
from greentrain.power import PowerModel, physical_curve
from greentrain.profile import LayerProfile, LayerTimes, ModelProfile

PROVENANCE = Provenance(meter="none", source="modelled", command="test", host="test", versions={}, trials_n=1)


def make_device(name: str, *, kind: str, points: int, memory_bytes: int, idle_w: float, busy_w: float) -> Device:
    names = [f"p{index}" for index in range(points)]
    curves = tuple(
        physical_curve(
            point=point, idle_w=idle_w, busy_w=idle_w + (busy_w - idle_w) * (1 - 0.3 * index), cubic_share=0.5, fit="test"
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
                f"d{number}", kind=kind, points=points, memory_bytes=memory_bytes,
                idle_w=busy_w * rng.uniform(0.1, 0.6), busy_w=busy_w,
            )  # fmt: skip
        )
        for point in range(points):
            speed = rng.uniform(0.5, 8) * (1 - 0.25 * point)
            rows = [[(0.002 + 0.004 * size) * rng.uniform(0.6, 1.4) / speed for size in sizes] for _ in range(layers)]
            monotone = tuple(tuple(sorted(row)) for row in rows)
            times.append(
                LayerTimes(
                    model="toy", kind=kind, point=f"p{point}", batch_B=sizes, forward_s_LB=monotone,
                    backward_s_LB=tuple(tuple(2 * value for value in row) for row in monotone),
                    update_s_L=tuple(0.001 / speed for _ in range(layers)), provenance=PROVENANCE,
                )  # fmt: skip
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
