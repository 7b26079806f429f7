"""Parallel adapters: bytes of the activation cache, of its redistribution, and after how many epochs it pays.

A frozen backbone computes every sample once; what it hands to the side network is kept, and later epochs train the
side network alone (arXiv 2408.10746). Cached is, per sample, every output that the side network reads, without
padding.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
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
    "cached_order",
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


def owner_samples(first: Plan, cached: Plan, order: np.ndarray) -> dict[str, np.ndarray]:
    """Which samples each device of the cached epochs keeps, rising: in proportion to its share.

    Owners get samples that they computed in epoch 1 as far as they can: samples are dealt out by their row in the
    micro-batches of epoch 1, and owners stand in the order of the rows that they had there.

    Args:
        first: Plan of epoch 1.
        cached: Data-parallel plan of the later epochs, of the same batch.
        order: Samples in the order of epoch 1; those behind the last whole batch are not cached.

    Raises:
        ValueError: The later plan has several stages, or another batch.
    """
    require(len(cached.stages) == 1, "cached epochs share samples only, the plan has several stages")
    require(first.batch == cached.batch, f"batches {first.batch} and {cached.batch} must be the same")
    rounds = len(order) // first.batch
    covered = order[: rounds * first.batch]
    places = np.arange(len(covered)) % first.micro_batch
    by_row = covered[np.argsort(places, kind="stable")]
    found: dict[str, np.ndarray] = {}
    start = 0
    for device, share in _owners(first, cached):
        stop = start + rounds * cached.micro_batches_n * share
        found[device] = np.sort(by_row[start:stop])
        start = stop
    return found


def cached_order(cached: Plan, owners: Mapping[str, np.ndarray], *, seed: int, epoch: int) -> np.ndarray:
    """Samples in the order of a cached epoch: each owner's in an order of their own, in the owner's rows.

    Args:
        cached: Data-parallel plan of the later epochs.
        owners: From :func:`owner_samples`.
        seed: Of the run.
        epoch: Counted from 0 over the whole run, so at least 1.
    """
    stage = cached.stages[0]
    found = np.empty(sum(map(len, owners.values())), dtype=np.int64)
    micro_batches = found.reshape(-1, cached.micro_batch)
    for rank, (device, (low, high)) in enumerate(zip(stage.devices, row_ranges(stage.shares), strict=True)):
        own = np.random.default_rng((seed, epoch, rank)).permutation(owners[device])
        micro_batches[:, low:high] = own.reshape(-1, high - low)
    return found


def _owners(first: Plan, cached: Plan) -> list[tuple[str, int]]:
    """Owners with their shares, in the order of the rows that they had in epoch 1."""
    middles: dict[str, float] = {}
    for stage in first.stages:
        for device, (low, high) in zip(stage.devices, row_ranges(stage.shares), strict=True):
            middles[device] = (low + high) / 2 / first.micro_batch
    stage = cached.stages[0]
    pairs = list(zip(stage.devices, stage.shares, strict=True))
    return sorted(pairs, key=lambda pair: middles.get(pair[0], 0.5))


class Moved(NamedTuple):
    """Bytes that go from one device to another."""

    src: str
    dst: str
    size_bytes: float


def redistribution(first: Plan, cached: Plan, shape: CacheShape, samples_n: int) -> tuple[Moved, ...]:
    """Mean bytes that move between the phases: each output from the device that computed it to the sample's owner.

    Args:
        first: Plan of epoch 1.
        cached: Data-parallel plan of the later epochs.
        shape: What is cached.
        samples_n: Samples in all.
    """
    found: list[Moved] = []
    for stage in first.stages:
        stage_bytes = shape.sample_bytes(stage.start, stage.stop)
        for src, (low, high) in zip(stage.devices, row_ranges(stage.shares), strict=True):
            start = 0.0
            for dst, share in _owners(first, cached):
                stop = start + share / cached.micro_batch
                both = min(stop, high / first.micro_batch) - max(start, low / first.micro_batch)
                start = stop
                if src != dst and both > 1e-12 and stage_bytes > 0:
                    found.append(Moved(src, dst, samples_n * both * stage_bytes))
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
