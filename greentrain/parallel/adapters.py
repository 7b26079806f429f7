"""Parallel adapters: bytes of the activation cache, of its redistribution, and after how many epochs it pays.

A frozen backbone computes every sample once; what it hands to the side network is kept, and later epochs train the
side network alone (arXiv 2408.10746). Cached is, per sample, every output that the side network reads, without
padding.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

import msgspec
import numpy as np

from greentrain._checks import require, require_positive
from greentrain.cluster import Cluster
from greentrain.plan import Plan, row_ranges

__all__ = [
    "CACHE_DTYPES",
    "ENCRYPTION_BYTES",
    "CacheDtype",
    "CacheShape",
    "Moved",
    "break_even_epochs",
    "moved_s",
    "owner_samples",
    "record_bytes",
    "redistribution",
]

CacheDtype = Literal["float32", "float16", "int8"]
CACHE_DTYPES: tuple[CacheDtype, ...] = get_args(CacheDtype)
_ELEMENT_BYTES: dict[CacheDtype, int] = {"float32": 4, "float16": 2, "int8": 1}
# int8 keeps the scale of each token.
_SCALE_BYTES = 4
# Of every record: nonce and tag of AES-GCM.
ENCRYPTION_BYTES = 12 + 16


def record_bytes(tokens: int, width: int, dtype: CacheDtype, *, encrypted: bool = False) -> int:
    """Bytes of one output of one sample."""
    scale = _SCALE_BYTES if dtype == "int8" else 0
    return tokens * (width * _ELEMENT_BYTES[dtype] + scale) + (ENCRYPTION_BYTES if encrypted else 0)


class CacheShape(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is cached of a sample.

    Attributes:
        layers: Index of the block that each output comes from.
        widths: Last dimension of each output.
        tokens: Mean tokens of a sample in each output, without padding.
        dtype: How it is kept.
        encrypted: Whether each record is encrypted.
    """

    layers: tuple[int, ...]
    widths: tuple[int, ...]
    tokens: tuple[float, ...]
    dtype: CacheDtype = "float16"
    encrypted: bool = False

    def __post_init__(self) -> None:
        require(len(self.layers) > 0, "a cache needs at least one output")
        require(len(self.layers) == len(self.widths) == len(self.tokens), "one width and one length per output")
        require_positive(**{f"width {index}": width for index, width in enumerate(self.widths)})

    def sample_bytes(self, start: int = 0, stop: int | None = None) -> float:
        """Mean bytes of a sample, of the outputs of blocks [start, stop)."""
        return sum(
            tokens * record_bytes(1, width, self.dtype) + (ENCRYPTION_BYTES if self.encrypted else 0)
            for layer, width, tokens in zip(self.layers, self.widths, self.tokens, strict=True)
            if start <= layer and (stop is None or layer < stop)
        )


def owner_samples(plan: Plan, samples_n: int, *, seed: int) -> dict[str, np.ndarray]:
    """Which samples each device of a data-parallel plan keeps, rising: in proportion to its share.

    A device takes its rows of every round from its own samples, so each has at least as many as an epoch takes.

    Raises:
        ValueError: The plan has several stages, or fewer samples than a batch.
    """
    require(len(plan.stages) == 1, "cached epochs share samples only, the plan has several stages")
    require(samples_n >= plan.batch, f"{samples_n} samples are fewer than the batch of {plan.batch}")
    stage = plan.stages[0]
    ends = np.cumsum(stage.shares) / plan.micro_batch
    rounds = samples_n // plan.batch
    least = np.cumsum([rounds * plan.micro_batches_n * share for share in stage.shares])
    left = samples_n - rounds * plan.batch
    stops = least + np.floor(ends * left + 1e-9).astype(np.int64)
    stops[-1] = samples_n
    order = np.random.default_rng((seed, 0)).permutation(samples_n)
    parts = np.split(order, stops[:-1])
    return {device: np.sort(part) for device, part in zip(stage.devices, parts, strict=True)}


class Moved(NamedTuple):
    """Bytes that go from one device to another."""

    src: str
    dst: str
    size_bytes: float


def redistribution(first: Plan, cached: Plan, shape: CacheShape, samples_n: int) -> tuple[Moved, ...]:
    """Mean bytes that move between the phases: each output from the device that computed it to the sample's owner.

    A device that computes rows of a stage in epoch 1 holds the stage's outputs of a part of all samples; which ones is
    drawn, so an owner holds that part of its own samples already.

    Args:
        first: Plan of epoch 1.
        cached: Data-parallel plan of the later epochs.
        shape: What is cached.
        samples_n: Samples in all.
    """
    owners = cached.stages[0]
    found: list[Moved] = []
    for stage in first.stages:
        stage_bytes = shape.sample_bytes(stage.start, stage.stop)
        for src, (low, high) in zip(stage.devices, row_ranges(stage.shares), strict=True):
            held = (high - low) / first.micro_batch
            for dst, share in zip(owners.devices, owners.shares, strict=True):
                size = samples_n * held * share / cached.micro_batch * stage_bytes
                if src != dst and size > 0:
                    found.append(Moved(src, dst, size))
    return tuple(found)


def moved_s(moved: Sequence[Moved], cluster: Cluster) -> float:
    """Seconds of a redistribution: the busiest port, or the sum on a shared medium."""
    out_s: dict[str, float] = {}
    in_s: dict[str, float] = {}
    air_s: dict[str, float] = {}
    latency_s = 0.0
    for part in moved:
        link = cluster.link(part.src, part.dst)
        seconds = part.size_bytes / cluster.bandwidth_bytes_per_s(link)
        latency_s = max(latency_s, link.latency_s)
        out_s[part.src] = out_s.get(part.src, 0.0) + seconds
        in_s[part.dst] = in_s.get(part.dst, 0.0) + seconds
        if link.medium is not None:
            air_s[link.medium] = air_s.get(link.medium, 0.0) + seconds
    return max([*out_s.values(), *in_s.values(), *air_s.values()], default=0.0) + latency_s


def break_even_epochs(*, once: float, uncached_epoch: float, cached_epoch: float) -> int | None:
    """Fewest epochs for which filling the cache costs less than doing without; None: never.

    Args:
        once: What filling and redistribution add to the first epoch, in joules or seconds.
        uncached_epoch: An epoch with the backbone.
        cached_epoch: An epoch from the cache.
    """
    saved = uncached_epoch - cached_epoch
    if saved <= 0:
        return None
    return 1 + max(math.floor(once / saved) + 1, 1)
