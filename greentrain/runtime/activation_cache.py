"""The activation cache: what a frozen backbone computed of every sample, on disk without padding, or in memory.

A folder holds ``header.json``, ``samples.i64`` and ``tokens.i64`` (which samples, how long), one file per output with
the records of all samples one after the other, and ``sums.u32``: a checksum per output and sample, 0 where there is
none yet. A record is written before its checksum, so that a process may be killed at any instant: what lacks a
checksum, or does not agree with it, is missing and is computed again.
"""

from __future__ import annotations

import os
import shutil
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import numpy as np

from greentrain._checks import require
from greentrain.errors import RunError, UsageError
from greentrain.files import read_json, write_bytes, write_json, writing
from greentrain.parallel.adapters import CacheDtype, record_bytes
from greentrain.runtime.cache_cipher import CacheCipher
from greentrain.units import format_quantity

__all__ = ["ActivationCache", "CacheHeader", "CacheKey", "Opened", "full_bytes", "make_room", "open_cache"]

CACHE_SCHEMA = "greentrain.cache/1"

Bytes = np.ndarray


class CacheKey(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What cached activations depend on; another model, other data or other lengths are another cache.

    Attributes:
        model_sha256: Hash of the frozen blocks, structure and weights.
        data_sha256: Hash of the inputs of all samples.
        lengths_sha256: Hash of the tokens of each sample.
    """

    model_sha256: str
    data_sha256: str
    lengths_sha256: str


class CacheHeader(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a cache holds.

    Attributes:
        key: What it depends on.
        layers: Block that each output comes from.
        widths: Last dimension of each output.
        decoder: Whether the tokens of each output are the decoder's.
        dtype: How outputs are kept.
        encrypted: Whether records are encrypted.
        samples_n: Samples that it has room for.
        samples_sha256: Hash of which samples these are.
    """

    key: CacheKey
    layers: tuple[int, ...]
    widths: tuple[int, ...]
    decoder: tuple[bool, ...]
    dtype: CacheDtype
    encrypted: bool
    samples_n: int
    samples_sha256: str


@dataclass
class ActivationCache:
    """Cached outputs of some samples. Close it, or let it go, when done.

    Attributes:
        header: What it holds.
        samples: Its samples, rising.
        tokens: Tokens of each sample in each output, (outputs, samples).
        folder: Where it lies; None: in memory.
        cipher: Encrypts records; None: they are plain.
        written_bytes: Bytes of records that were written through this object.
        read_bytes: Bytes of records that were read through it.
    """

    header: CacheHeader
    samples: np.ndarray
    tokens: np.ndarray
    folder: Path | None
    cipher: CacheCipher | None
    _data: list[Bytes]
    _sums: np.ndarray
    written_bytes: int = 0
    read_bytes: int = 0
    _ends: np.ndarray = field(init=False)
    _checked: np.ndarray = field(init=False)
    _error: list[float] = field(default_factory=lambda: [0.0, 0.0])

    def __post_init__(self) -> None:
        self._ends = np.cumsum(_sizes(self.header, self.tokens), axis=1)
        self._checked = np.zeros(self._sums.shape, dtype=bool)

    @property
    def size_bytes(self) -> int:
        """Bytes of all records when it is full."""
        return int(self._ends[:, -1].sum()) if len(self.samples) else 0

    @property
    def rms_error_ratio(self) -> float | None:
        """Root mean square error of what was written over the root mean square of it; None before any."""
        error, size = self._error
        return (error / size) ** 0.5 if size > 0 else None

    def positions(self, samples: np.ndarray) -> np.ndarray:
        """Places of samples in this cache.

        Raises:
            KeyError: One is not of this cache.
        """
        found = np.searchsorted(self.samples, samples)
        if np.any(found >= len(self.samples)) or np.any(self.samples[found] != samples):
            raise KeyError(f"samples {samples} are not all of this cache")
        return found

    def holds(self, layer: int, samples: np.ndarray) -> np.ndarray:
        """Whether each sample has this output here, by its checksum's presence."""
        if layer not in self.header.layers:
            return np.zeros(len(samples), dtype=bool)
        found = np.searchsorted(self.samples, samples).clip(max=max(len(self.samples) - 1, 0))
        there = self.samples[found] == samples if len(self.samples) else np.zeros(len(samples), dtype=bool)
        return there & (self._sums[self.header.layers.index(layer), found] != 0 if len(self.samples) else there)

    def put(self, layer: int, samples: np.ndarray, rows: np.ndarray) -> None:
        """Keep an output of some samples.

        Args:
            layer: Block that it comes from.
            samples: The samples.
            rows: (samples, tokens, width) float32; what is behind a sample's tokens is padding.
        """
        output = self.header.layers.index(layer)
        for row, position in zip(rows, self.positions(samples), strict=True):
            values = row[: self.tokens[output, position]]
            self._write(output, int(position), self._encoded(values))

    def put_record(self, layer: int, sample: int, record: bytes) -> None:
        """Keep an output as :meth:`record` gave it on another device, which has encrypted it with its own key or not.

        Args:
            layer: Block that it comes from.
            sample: The sample.
            record: Plain bytes.
        """
        position = int(self.positions(np.array([sample]))[0])
        self._write(self.header.layers.index(layer), position, record)

    def record(self, layer: int, sample: int) -> bytes | None:
        """Plain bytes of an output of a sample; None where it is missing or damaged."""
        output = self.header.layers.index(layer)
        return self._read(output, int(self.positions(np.array([sample]))[0]))

    def rows(self, layer: int, samples: np.ndarray, into: np.ndarray) -> np.ndarray:
        """Read an output of some samples into zeros.

        Args:
            layer: Block that it comes from.
            samples: The samples.
            into: (samples, tokens, width) float32.

        Returns:
            The samples whose record is missing or damaged, left as they are.
        """
        output = self.header.layers.index(layer)
        width = self.header.widths[output]
        lost: list[int] = []
        for index, position in enumerate(self.positions(samples)):
            data = self._read(output, int(position))
            if data is None:
                lost.append(int(samples[index]))
                continue
            values = _decoded(data, width, self.header.dtype)
            into[index, : len(values)] = values
        return np.array(lost, dtype=np.int64)

    def missing(self, samples: np.ndarray | None = None, *, look: bool = False) -> dict[int, np.ndarray]:
        """By output, the samples whose record is not there; outputs that are whole are left out.

        Args:
            samples: Of these samples; None: of all.
            look: Read every record and compare its checksum, not only look whether there is one.
        """
        wanted = self.samples if samples is None else samples
        positions = self.positions(wanted)
        found: dict[int, np.ndarray] = {}
        for output, layer in enumerate(self.header.layers):
            if look:
                lost = [self._read(output, int(position)) is None for position in positions]
            else:
                lost = self._sums[output, positions] == 0
            if np.any(lost):
                found[layer] = wanted[np.asarray(lost)]
        return found

    def flush(self) -> None:
        """Bring what was written to the disk: records first, then their checksums."""
        if self.folder is None:
            return
        with writing(self.folder):
            for data in (*self._data, self._sums):
                if isinstance(data, np.memmap):
                    data.flush()

    def _write(self, output: int, position: int, plain: bytes) -> None:
        start, stop = self._span(output, position)
        record = plain if self.cipher is None else self.cipher.seal(plain, self._place(output, position))
        require(len(record) == stop - start, f"a record has {len(record)} bytes, expected {stop - start}")
        # Until the new record is whole there is none.
        self._sums[output, position] = 0
        self._data[output][start:stop] = np.frombuffer(record, dtype=np.uint8)
        self._sums[output, position] = _checksum(record)
        self.written_bytes += len(record)

    def _read(self, output: int, position: int) -> bytes | None:
        expected = int(self._sums[output, position])
        if expected == 0:
            return None
        start, stop = self._span(output, position)
        record = self._data[output][start:stop].tobytes()
        self.read_bytes += len(record)
        if not self._checked[output, position]:
            if _checksum(record) != expected:
                self._sums[output, position] = 0
                return None
            self._checked[output, position] = True
        if self.cipher is None:
            return record
        plain = self.cipher.open(record, self._place(output, position))
        if plain is None:
            self._sums[output, position] = 0
        return plain

    def _span(self, output: int, position: int) -> tuple[int, int]:
        start = int(self._ends[output, position - 1]) if position else 0
        return start, int(self._ends[output, position])

    def _place(self, output: int, position: int) -> bytes:
        """What a sealed record is bound to."""
        return f"{self.header.key.model_sha256}:{self.header.layers[output]}:{self.samples[position]}".encode()

    def _encoded(self, values: np.ndarray) -> bytes:
        data = _encode(values, self.header.dtype)
        kept = _decoded(data, values.shape[1], self.header.dtype)
        self._error[0] += float(np.square(kept - values, dtype=np.float64).sum())
        self._error[1] += float(np.square(values, dtype=np.float64).sum())
        return data


def _encode(values: np.ndarray, dtype: CacheDtype) -> bytes:
    """(tokens, width) float32 → bytes; int8: the scale of every token, then the values."""
    if dtype == "float32":
        return np.ascontiguousarray(values, dtype=np.float32).tobytes()
    if dtype == "float16":
        largest = float(np.finfo(np.float16).max)
        return values.clip(-largest, largest).astype(np.float16).tobytes()
    scale = (np.abs(values).max(axis=1) / 127).astype(np.float32)
    scale[scale == 0] = 1
    return scale.tobytes() + np.rint(values / scale[:, None]).astype(np.int8).tobytes()


def _decoded(data: bytes, width: int, dtype: CacheDtype) -> np.ndarray:
    if dtype == "float32":
        return np.frombuffer(data, dtype=np.float32).reshape(-1, width)
    if dtype == "float16":
        return np.frombuffer(data, dtype=np.float16).reshape(-1, width).astype(np.float32)
    tokens = len(data) // (width + 4)
    scale = np.frombuffer(data, dtype=np.float32, count=tokens)
    return np.frombuffer(data, dtype=np.int8, offset=4 * tokens).reshape(-1, width) * scale[:, None]


def _checksum(record: bytes) -> int:
    """Never 0, which says that there is no record."""
    return zlib.crc32(record) or 1


def full_bytes(header: CacheHeader, tokens: np.ndarray) -> int:
    """Bytes of all records of a cache.

    Args:
        header: What it holds.
        tokens: Tokens of each sample in each output, (outputs, samples).
    """
    return int(_sizes(header, tokens).sum())


def _sizes(header: CacheHeader, tokens: np.ndarray) -> np.ndarray:
    """Bytes of every record, (outputs, samples)."""
    extra = record_bytes(0, 1, header.dtype, encrypted=header.encrypted)
    per_token = [record_bytes(1, width, header.dtype) for width in header.widths]
    return tokens * np.array(per_token, dtype=np.int64)[:, None] + extra


@dataclass(frozen=True)
class Opened:
    """An opened cache, and what was found.

    Attributes:
        cache: The cache.
        remark: One sentence where what lay there could not be used as it was; empty otherwise.
    """

    cache: ActivationCache
    remark: str


def open_cache(
    folder: Path | None, header: CacheHeader, samples: np.ndarray, tokens: np.ndarray, cipher: CacheCipher | None = None
) -> Opened:
    """Open the cache of a folder, or make it where there is none of this kind.

    Args:
        folder: The folder; None: in memory.
        header: What it must hold; of another one nothing is used.
        samples: Its samples, rising.
        tokens: Tokens of each sample in each output, (outputs, samples).
        cipher: Encrypts records.

    Raises:
        RunError: The disk is full.
        UnavailableError: The folder may not be written.
    """
    require(header.encrypted == (cipher is not None), "an encrypted cache needs a key, a plain one has none")
    sizes = _sizes(header, tokens)
    totals = [int(size) for size in sizes.sum(axis=1)]
    if folder is None:
        data = [np.zeros(total, dtype=np.uint8) for total in totals]
        sums = np.zeros(sizes.shape, dtype=np.uint32)
        return Opened(ActivationCache(header, samples, tokens, None, cipher, data, sums), "")
    remark = _unusable(folder, header)
    there = (folder / "header.json").exists() and not remark
    if remark:
        shutil.rmtree(folder, ignore_errors=True)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    try:
        sums_file = folder / "sums.u32"
        cut = _sized(sums_file, sizes.size * 4)
        sums = _mapped(sums_file, np.uint32, sizes.shape)
        data: list[Bytes] = []
        for layer, total, row in zip(header.layers, totals, sums, strict=True):
            file = folder / f"layer-{layer}.bin"
            if _sized(file, total):
                row[:] = 0
                cut = True
            data.append(_mapped(file, np.uint8, (total,)))
        write_bytes(folder / "samples.i64", samples.astype("<i8").tobytes())
        write_bytes(folder / "tokens.i64", tokens.astype("<i8").tobytes())
        write_json(folder / "header.json", header, schema=CACHE_SCHEMA)
    except RunError:
        # A folder that has no room is of no use, and takes what is left of the disk.
        shutil.rmtree(folder, ignore_errors=True)
        raise
    if cut and there:
        remark = f"{folder}: the cache was cut short; what is missing is computed again."
    return Opened(ActivationCache(header, samples, tokens, folder, cipher, data, sums), remark)


def _unusable(folder: Path, header: CacheHeader) -> str:
    """Why what lies in a folder is not this cache; empty where it is, or where nothing lies there."""
    if not (folder / "header.json").exists():
        return f"{folder}: the cache has no header; it is made again." if folder.exists() else ""
    try:
        found = read_json(folder / "header.json", CacheHeader, schema=CACHE_SCHEMA)
    except UsageError:
        return f"{folder}: the cache's header is damaged; it is made again."
    if found == header:
        return ""
    what = "with other settings"
    for name, said in (
        ("model_sha256", "by another model"),
        ("data_sha256", "of other data"),
        ("lengths_sha256", "of other lengths"),
    ):
        if getattr(found.key, name) != getattr(header.key, name):
            what = said
            break
    return f"{folder}: the cache was made {what}; it is made again."


def _sized(file: Path, size_bytes: int) -> bool:
    """Give a file its whole size on the disk now, so that a full disk is known before anything is computed.

    Returns:
        Whether it was not there with this size.
    """
    with writing(file):
        before = file.stat().st_size if file.exists() else None
        if before == size_bytes:
            return False
        with file.open("ab" if before is not None else "wb") as stream:
            if before is not None and before > size_bytes:
                stream.truncate(size_bytes)
            if size_bytes:
                os.posix_fallocate(stream.fileno(), 0, size_bytes)
    return True


def _mapped(file: Path, dtype: type[np.generic], shape: tuple[int, ...]) -> np.ndarray:
    if 0 in shape:
        return np.zeros(shape, dtype=dtype)
    with writing(file):
        return np.memmap(file, dtype=dtype, mode="r+", shape=shape)


def make_room(root: Path, needed_bytes: int, limit_bytes: int, keep: Sequence[Path] = ()) -> tuple[Path, ...]:
    """Delete the caches of a folder that were used longest ago, until one more fits a limit.

    Args:
        root: Holds one folder per cache.
        needed_bytes: Bytes of the new one.
        limit_bytes: Most bytes of all.
        keep: Folders that stay, such as the one that is to be filled.

    Returns:
        The folders that were deleted.

    Raises:
        UsageError: The new one alone is larger than the limit.
    """
    if needed_bytes > limit_bytes:
        raise UsageError(
            f"{root}: the activation cache needs {format_quantity(needed_bytes, 'bytes')}, "
            f"its limit is {format_quantity(limit_bytes, 'bytes')}.",
            hint="Raise --cache-limit, keep it as int8, or train without a cache.",
        )
    caches = [header.parent for header in root.glob("*/header.json") if header.parent not in keep]
    sizes: Mapping[Path, int] = {
        folder: sum(file.stat().st_size for file in folder.iterdir() if file.is_file()) for folder in caches
    }
    left = sum(sizes.values())
    deleted: list[Path] = []
    for folder in sorted(caches, key=lambda path: (path / "header.json").stat().st_mtime):
        if left + needed_bytes <= limit_bytes:
            break
        shutil.rmtree(folder, ignore_errors=True)
        left -= sizes[folder]
        deleted.append(folder)
    return tuple(deleted)
