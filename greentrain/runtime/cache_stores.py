"""The caches of one device: what it computed in epoch 1, and what others computed of the samples that it keeps."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import nn

from greentrain.errors import RunError
from greentrain.parallel.adapters import CacheDtype, owner_samples
from greentrain.plan import Plan, row_ranges
from greentrain.runtime.activation_cache import (
    ActivationCache,
    CacheHeader,
    CacheKey,
    full_bytes,
    make_room,
    open_cache,
)
from greentrain.runtime.cache_cipher import CacheCipher
from greentrain.workloads.adapters.pairs import CachedEntry, PairBlock
from greentrain.workloads.workload import run_blocks

__all__ = ["CacheAsk", "CachedColumn", "CachedMask", "Stores", "computed_samples", "key_of", "refill"]


@dataclass(frozen=True, kw_only=True)
class CacheAsk:
    """Which cache is wanted.

    Attributes:
        root: Folder of the caches.
        dtype: How outputs are kept.
        cipher: Encrypts records; None: they are plain.
        limit_bytes: Most bytes of all caches in the folder; None: what the disk has.
    """

    root: Path
    dtype: CacheDtype = "float16"
    cipher: CacheCipher | None = None
    limit_bytes: int | None = None


def key_of(model_sha256: str, inputs: Sequence[np.ndarray], lengths: np.ndarray) -> CacheKey:
    """What a cache of these inputs depends on."""
    digest = hashlib.sha256()
    for array in inputs:
        digest.update(f"{array.shape}{array.dtype}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return CacheKey(
        model_sha256=model_sha256,
        data_sha256=digest.hexdigest(),
        lengths_sha256=hashlib.sha256(lengths.astype("<i8").tobytes()).hexdigest(),
    )


def computed_samples(first: Plan, device: str, order: np.ndarray) -> tuple[tuple[int, int], np.ndarray]:
    """Blocks [start, stop) that a device computes in epoch 1, and of which samples, rising; none where it has no part.

    Args:
        first: Plan of epoch 1.
        device: The device.
        order: Samples in the order of epoch 1.
    """
    for stage in first.stages:
        if device in stage.devices:
            low, high = row_ranges(stage.shares)[stage.devices.index(device)]
            covered = order[: len(order) // first.batch * first.batch].reshape(-1, first.micro_batch)
            return (stage.start, stage.stop), np.sort(covered[:, low:high].ravel())
    return (0, 0), np.empty(0, dtype=np.int64)


@dataclass
class Stores:
    """A device's caches.

    Attributes:
        ask: Which cache is wanted.
        key: What it depends on.
        entries: All outputs that the side network reads.
        lengths: Tokens of every sample of the data.
        device: This device.
        remarks: One sentence per cache that could not be used as it lay there.
        io_s: Seconds spent on reading and writing records.
    """

    ask: CacheAsk
    key: CacheKey
    entries: Sequence[CachedEntry]
    lengths: np.ndarray
    device: str
    caches: list[ActivationCache] = field(default_factory=list[ActivationCache])
    remarks: list[str] = field(default_factory=list[str])
    io_s: float = 0.0

    @property
    def layers(self) -> tuple[int, ...]:
        """Block that each output comes from."""
        return tuple(entry.block for entry in self.entries)

    @property
    def written_bytes(self) -> int:
        """Bytes of records written."""
        return sum(cache.written_bytes for cache in self.caches)

    @property
    def read_bytes(self) -> int:
        """Bytes of records read."""
        return sum(cache.read_bytes for cache in self.caches)

    @property
    def size_bytes(self) -> int:
        """Bytes of all records when the caches are full."""
        return sum(cache.size_bytes for cache in self.caches)

    @property
    def rms_error_ratio(self) -> float | None:
        """Largest relative error of what was written; None before anything was."""
        return max((cache.rms_error_ratio for cache in self.caches if cache.rms_error_ratio is not None), default=None)

    def open_computed(self, first: Plan, order: np.ndarray) -> ActivationCache | None:
        """The cache of what this device computes in epoch 1; None where it computes nothing that is cached."""
        (start, stop), samples = computed_samples(first, self.device, order)
        return self._open("computed", [entry for entry in self.entries if start <= entry.block < stop], samples)

    def open_received(self, first: Plan, cached: Plan, order: np.ndarray) -> np.ndarray:
        """The caches of what others compute of this device's own samples.

        Returns:
            The samples that it keeps; none where it has no part in the cached epochs.
        """
        owned = owner_samples(first, cached, order).get(self.device, np.empty(0, dtype=np.int64))
        (start, stop), computed = computed_samples(first, self.device, order)
        inside = [entry for entry in self.entries if start <= entry.block < stop]
        outside = [entry for entry in self.entries if entry not in inside]
        self._open("rows", inside, np.setdiff1d(owned, computed))
        self._open("layers", outside, owned)
        return owned

    def _open(self, name: str, entries: Sequence[CachedEntry], samples: np.ndarray) -> ActivationCache | None:
        if not entries or not len(samples):
            return None
        header = CacheHeader(
            key=self.key,
            layers=tuple(entry.block for entry in entries),
            widths=tuple(entry.width for entry in entries),
            decoder=tuple(entry.decoder for entry in entries),
            dtype=self.ask.dtype,
            encrypted=self.ask.cipher is not None,
            samples_n=len(samples),
            samples_sha256=hashlib.sha256(samples.astype("<i8").tobytes()).hexdigest(),
        )
        tokens = np.stack([np.ones_like(samples) if entry.decoder else self.lengths[samples] for entry in entries])
        folder = self.ask.root / f"{self.key.model_sha256[:8]}-{self.key.data_sha256[:8]}-{self.device}-{name}"
        if self.ask.limit_bytes is not None:
            own = [cache.folder for cache in self.caches if cache.folder is not None]
            needed = full_bytes(header, tokens) + self.size_bytes
            make_room(self.ask.root, needed, self.ask.limit_bytes, [*own, folder])
        opened = open_cache(folder, header, samples, tokens, self.ask.cipher)
        if opened.remark:
            self.remarks.append(opened.remark)
        self.caches.append(opened.cache)
        return opened.cache

    def put(self, layer: int, samples: np.ndarray, rows: np.ndarray) -> None:
        """Keep an output of those of the samples that have a place here and are not kept yet."""
        begun_s = time.monotonic()
        for cache in self.caches:
            if layer not in cache.header.layers:
                continue
            wanted = np.isin(samples, cache.samples) & ~cache.holds(layer, samples)
            if wanted.any():
                cache.put(layer, samples[wanted], rows[wanted])
        self.io_s += time.monotonic() - begun_s

    def flush(self) -> None:
        """Bring everything to the disk."""
        begun_s = time.monotonic()
        for cache in self.caches:
            cache.flush()
        self.io_s += time.monotonic() - begun_s

    def record(self, layer: int, sample: int) -> bytes | None:
        """Plain bytes of a record, from whichever cache has it."""
        for cache in self.caches:
            if cache.holds(layer, np.array([sample]))[0]:
                return cache.record(layer, sample)
        return None

    def put_record(self, layer: int, sample: int, record: bytes) -> None:
        """Keep a record that came from another device."""
        for cache in self.caches:
            if layer in cache.header.layers and sample in cache.samples:
                cache.put_record(layer, sample, record)

    def missing(self, owned: np.ndarray, *, look: bool) -> dict[int, np.ndarray]:
        """By output, those of a device's own samples whose record is nowhere here."""
        found: dict[int, np.ndarray] = {}
        if look:
            for cache in self.caches:
                cache.missing(np.intersect1d(cache.samples, owned), look=True)
        for layer in self.layers:
            held = np.zeros(len(owned), dtype=bool)
            for cache in self.caches:
                held |= cache.holds(layer, owned)
            if not held.all():
                found[layer] = owned[~held]
        return found

    def rows(self, layer: int, width: int, samples: np.ndarray, tokens: int) -> np.ndarray:
        """An output of some samples, padded with zeros: (samples, tokens, width) float32.

        Raises:
            RunError: A record is missing or damaged.
        """
        begun_s = time.monotonic()
        into = np.zeros((len(samples), tokens, width), dtype=np.float32)
        open_rows = np.ones(len(samples), dtype=bool)
        for cache in self.caches:
            here = open_rows & cache.holds(layer, samples)
            if here.any():
                part = np.zeros((int(here.sum()), tokens, width), dtype=np.float32)
                lost = cache.rows(layer, samples[here], part)
                into[here] = part
                open_rows &= ~here | np.isin(samples, lost)
        self.io_s += time.monotonic() - begun_s
        if open_rows.any():
            raise RunError(
                f"{self.device}: the cache lost block {layer} of sample {samples[open_rows][0]}, "
                f"{int(open_rows.sum())} records in all.",
                hint="Run the same command again: what is missing is computed again, finished epochs are kept.",
            )
        return into


class CachedColumn:
    """One cached output of all samples, read when rows are asked for; as wide as the longest of them."""

    def __init__(self, stores: Stores, entry: CachedEntry) -> None:
        self._stores, self._entry = stores, entry

    def __getitem__(self, samples: np.ndarray) -> np.ndarray:
        tokens = 1 if self._entry.decoder else int(self._stores.lengths[samples].max())
        return self._stores.rows(self._entry.block, self._entry.width, samples, tokens)


class CachedMask:
    """The masks beside cached outputs, as wide as they are."""

    def __init__(self, mask: np.ndarray, lengths: np.ndarray) -> None:
        self._mask, self._lengths = mask, lengths

    def __getitem__(self, samples: np.ndarray) -> np.ndarray:
        return self._mask[samples][:, : int(self._lengths[samples].max())]


def refill(
    stores: Stores, missing: Mapping[int, np.ndarray], pairs: Callable[[], Sequence[nn.Module]],
    inputs: Sequence[np.ndarray], rows: int,
) -> int:  # fmt: skip
    """Compute again what is missing, with the whole backbone on this device.

    Args:
        stores: Where it goes.
        missing: By output, the samples.
        pairs: Makes the blocks of epoch 1.
        inputs: Of the backbone.
        rows: Samples at once.

    Returns:
        Samples that were computed.
    """
    if not missing:
        return 0
    samples = np.unique(np.concatenate(list(missing.values())))
    blocks = [block for block in pairs() if isinstance(block, PairBlock)]
    for start in range(0, len(samples), rows):
        chosen = samples[start : start + rows]
        kept: dict[int, torch.Tensor] = {}
        for block in blocks:
            block.sink = kept.__setitem__
        with torch.no_grad():
            run_blocks(blocks, tuple(torch.from_numpy(array[chosen]) for array in inputs))
        for layer in missing:
            stores.put(layer, chosen, kept[layer].numpy())
    stores.flush()
    return len(samples)
