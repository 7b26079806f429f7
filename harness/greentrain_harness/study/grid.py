"""Which cases a study has: the grid of the simulated part, and the smaller one of the lab."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

from greentrain.objective import Parallelism
from greentrain.study import WAYS, Network, StudyCase

__all__ = ["BANDWIDTHS_MBIT_PER_S", "BOARDS", "MODELS", "QUICK_MODELS", "lab_cases", "simulated_cases"]

MODELS: tuple[str, ...] = ("bert-small", "gpt2-small", "mobilenetv2")
QUICK_MODELS: tuple[str, ...] = ("bert-small", "mobilenetv2")

# Name -> kinds of the first, second, … device.
BOARDS: dict[str, tuple[str, ...]] = {
    "jetson-nano-4gb": ("jetson-nano-4gb",) * 6,
    "jetson-orin-nano-8gb": ("jetson-orin-nano-8gb",) * 6,
    "mixed": (
        "jetson-orin-nano-8gb", "jetson-xavier-nx-8gb", "jetson-tx2-8gb", "jetson-xavier-nx-8gb", "jetson-nano-4gb",
        "jetson-nano-4gb",
    ),
}  # fmt: skip

BANDWIDTHS_MBIT_PER_S: tuple[float, ...] = (10.0, 30.0, 100.0, 300.0, 1000.0)
_FEW_BANDWIDTHS: tuple[float, ...] = (10.0, 100.0, 1000.0)
_DEVICES: tuple[int, ...] = (1, 2, 3, 4, 5, 6)

# The workloads' own batch, and one over which a gradient sum is spread eight times as far.
SMALL_BATCH, LARGE_BATCH = 32, 256
# What a board that also does something else may have left for training.
LITTLE_MEMORY_MIB = 160.0

# The lab: processor quota of each node (percent of a core), the rates of their links, and the ways. A run takes most of
# a minute, nearly all of it starting up.
LAB_CLUSTERS: tuple[tuple[str, tuple[float, ...], tuple[Parallelism, ...]], ...] = (
    ("60 60", (100.0, 1000.0), WAYS),
    ("45 45 30", (100.0,), ("data", "tensor+sequence", "pipeline", "hybrid")),
)
LAB_BATCH = 8


def simulated_cases(models: Sequence[str], *, quick: bool) -> Iterator[StudyCase]:
    """The cases of the simulated part, model by model; those of one problem follow each other."""
    for model in models:
        if quick:
            boards = ("jetson-nano-4gb", "mixed")
            yield from _grid(model, boards, (1, 2, 4), _FEW_BANDWIDTHS, batch=LARGE_BATCH)
            yield from _grid(model, boards[:1], (1, 2, 4), (1000.0,), batch=LARGE_BATCH, memory=LITTLE_MEMORY_MIB)
            yield from _grid(model, boards[:1], (4,), _FEW_BANDWIDTHS, batch=LARGE_BATCH, network="shared")
            continue
        every = tuple(BOARDS)
        for batch in (SMALL_BATCH, LARGE_BATCH):
            yield from _grid(model, every, _DEVICES, BANDWIDTHS_MBIT_PER_S, batch=batch)
        yield from _grid(model, every, _DEVICES, _FEW_BANDWIDTHS, batch=LARGE_BATCH, mode="lowest")
        yield from _grid(model, every[:1], _DEVICES, (100.0, 1000.0), batch=LARGE_BATCH, memory=LITTLE_MEMORY_MIB)
        for network in ("shared", "rooms"):
            yield from _grid(model, every, (4, 6), _FEW_BANDWIDTHS, batch=LARGE_BATCH, network=network)


def _grid(
    model: str, boards: Sequence[str], devices: Sequence[int], bandwidths: Sequence[float], *, batch: int,
    mode: str = "default", network: Network = "switch", memory: float | None = None,
) -> Iterator[StudyCase]:  # fmt: skip
    for board, devices_n, bandwidth in itertools.product(boards, devices, bandwidths):
        if devices_n == 1 and bandwidth != bandwidths[0]:
            continue  # One device sends nothing.
        for way in WAYS:
            if (way == "single") == (devices_n == 1):
                yield StudyCase(
                    part="simulated", model=model, boards=board, mode=mode, network=network, devices_n=devices_n,
                    bandwidth_mbit_per_s=bandwidth, batch=batch, way=way, memory_limit_mib=memory,
                )  # fmt: skip


def lab_cases(model: str, *, quick: bool) -> Iterator[StudyCase]:
    """The cases of the lab: clusters of nodes with processor quotas, one after another."""
    for quotas, bandwidths, ways in LAB_CLUSTERS[:1] if quick else LAB_CLUSTERS:
        for bandwidth in bandwidths[-1:] if quick else bandwidths:
            for way in ("single", "pipeline") if quick else ways:
                if way == "single" and bandwidth != bandwidths[-1]:
                    continue  # One node sends nothing.
                yield StudyCase(
                    part="lab", model=model, boards="lab", mode="default", network="switch",
                    devices_n=len(quotas.split()), bandwidth_mbit_per_s=bandwidth, batch=LAB_BATCH, way=way,
                    quotas_percent=quotas,
                )  # fmt: skip
