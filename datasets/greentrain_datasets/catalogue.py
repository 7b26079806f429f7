"""The device catalogue: planning devices made from public figures. Everything it gives is modelled.

The figures, their sources and the assumptions lie in ``catalogue.toml`` beside this file.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path

import msgspec

from greentrain._checks import require, require_id, require_positive
from greentrain.device import Device, OperatingPoint, Provenance
from greentrain.errors import UsageError
from greentrain.files import read_toml
from greentrain.power import PowerModel, physical_curve
from greentrain.profile import LayerProfile, LayerTimes, ModelProfile
from greentrain.units import parse_quantity
from greentrain.version import VERSION

__all__ = [
    "CatalogueEntry",
    "CataloguePoint",
    "catalogue_device",
    "catalogue_entry",
    "catalogue_kinds",
    "modelled_layer_times",
]

_FILE = Path(__file__).with_name("catalogue.toml")

_YEAR = re.compile(r"\b20[12]\d\b")

# Batch sizes at which modelled times are written down.
BATCHES: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)


class CataloguePoint(msgspec.Struct, frozen=True, kw_only=True):
    """One power mode of a catalogue kind.

    Attributes:
        point: Clocks and cap.
        peak_flop_per_s: Peak FP32 rate, from cores and clock.
        train_flop_per_s: Rate that training is assumed to reach.
        memory_bytes_per_s: Memory bandwidth.
        busy_w: Power at full throughput, watts.
    """

    point: OperatingPoint
    peak_flop_per_s: float
    train_flop_per_s: float
    memory_bytes_per_s: float
    busy_w: float

    def __post_init__(self) -> None:
        require_positive(
            peak_flop_per_s=self.peak_flop_per_s,
            train_flop_per_s=self.train_flop_per_s,
            memory_bytes_per_s=self.memory_bytes_per_s,
            busy_w=self.busy_w,
        )


class CatalogueEntry(msgspec.Struct, frozen=True, kw_only=True):
    """What the catalogue knows of a device kind. Every figure is public or assumed; none is measured.

    Attributes:
        kind: Its name in ``cluster.toml``.
        title: Its name for people.
        year: Year of the device.
        memory_bytes: Memory that training may use: the data sheet's less what the system is assumed to take.
        idle_w: Power when it waits, watts.
        idle_basis: Where the idle watts come from.
        layer_overhead_s: Assumed fixed time of a layer's pass, seconds.
        train_efficiency: Assumed share of the peak rate that training reaches.
        update_traffic: Assumed bytes moved per parameter byte by an optimizer step.
        cubic_share: Assumed cubic part of the rise from idle to busy power.
        points: Power modes; the first is the default.
        sources: One per figure, starting with its name: a data sheet or another publication, with year.
    """

    kind: str
    title: str
    year: int
    memory_bytes: int
    idle_w: float
    idle_basis: str
    layer_overhead_s: float
    train_efficiency: float
    update_traffic: float
    cubic_share: float
    points: tuple[CataloguePoint, ...]
    sources: tuple[str, ...]

    @property
    def train_flop_per_s(self) -> dict[str, float]:
        """Assumed training throughput by operating point, FLOP per second."""
        return {point.point.name: point.train_flop_per_s for point in self.points}

    @property
    def provenance(self) -> str:
        """What a reader of a modelled figure must know, in words."""
        return (
            f"modelled from the catalogue entry {self.kind!r} ({self.title}, {self.year}): busy = budget of the mode; "
            f"idle: {self.idle_basis}; training at {self.train_efficiency:.0%} of peak FP32 is an assumption. "
            f"Sources: {'; '.join(self.sources)}."
        )

    def point(self, name: str) -> CataloguePoint:
        """The power mode of a name.

        Raises:
            UsageError: The kind has no such point.
        """
        for point in self.points:
            if point.point.name == name:
                return point
        known = ", ".join(point.point.name for point in self.points)
        raise UsageError(f"catalogue kind {self.kind!r} has no operating point {name!r}.", hint=f"It has: {known}.")


class _Assumptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    train_efficiency: float
    cubic_share: float
    update_traffic: float

    def __post_init__(self) -> None:
        require_positive(train_efficiency=self.train_efficiency, update_traffic=self.update_traffic)
        require(self.train_efficiency <= 1, "train_efficiency must be at most 1")
        require(0 <= self.cubic_share <= 1, "cubic_share must lie in [0, 1]")


class _PointRow(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    name: str
    cores: int
    clock: str
    busy: str
    bandwidth: str
    cpu: str | None = None
    cap: str | None = None


class _Sources(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where each figure of a kind comes from, with its year."""

    memory: str
    bandwidth: str
    cores: str
    clocks: str
    busy: str

    def __post_init__(self) -> None:
        for figure, text in msgspec.structs.asdict(self).items():
            require(_YEAR.search(text) is not None, f"sources.{figure} is {text!r}, expected a source with its year")

    @property
    def named(self) -> tuple[str, ...]:
        """Each source with the figure that it is for."""
        return tuple(f"{figure}: {text}" for figure, text in msgspec.structs.asdict(self).items())


class _KindRow(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    name: str
    title: str
    year: int
    memory: str
    reserved: str
    flop_per_core_cycle: float
    layer_overhead: str
    idle: str
    idle_basis: str
    sources: _Sources
    points: tuple[_PointRow, ...]
    cpu_only: bool = False

    def __post_init__(self) -> None:
        require_id(self.name, what="kind")
        require(len(self.points) > 0, f"kind {self.name!r} needs at least one point")
        require(_YEAR.search(self.idle_basis) is not None, f"kind {self.name!r}: idle_basis needs a year")


class _CatalogueFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    assumptions: _Assumptions
    kind: tuple[_KindRow, ...]


def catalogue_kinds() -> tuple[str, ...]:
    """Names of all kinds, in the order of the file."""
    return tuple(_entries())


def catalogue_entry(kind: str) -> CatalogueEntry:
    """Everything that the catalogue knows of a kind.

    Raises:
        UsageError: The catalogue has no such kind; the hint names the nearest ones.
    """
    entries = _entries()
    if kind in entries:
        return entries[kind]
    near = difflib.get_close_matches(kind, entries, n=3, cutoff=0.4)
    hint = f"Did you mean {' or '.join(near)}?" if near else f"The catalogue has: {', '.join(entries)}."
    raise UsageError(f"unknown device kind {kind!r} in the catalogue.", hint=hint)


def catalogue_device(kind: str, device_id: str) -> Device:
    """A planning device of a kind, with a modelled power curve for each of its modes.

    Raises:
        UsageError: The catalogue has no such kind.
    """
    entry = catalogue_entry(kind)
    curves = tuple(
        physical_curve(
            point=point.point.name,
            idle_w=entry.idle_w,
            busy_w=point.busy_w,
            cubic_share=entry.cubic_share,
            fit="catalogue",
        )
        for point in entry.points
    )
    power = PowerModel(idle_w=entry.idle_w, curves=curves, source="modelled", provenance=entry.provenance)
    return Device(
        id=device_id,
        kind=kind,
        memory_bytes=entry.memory_bytes,
        points=tuple(point.point for point in entry.points),
        power=power,
    )


def modelled_layer_times(profile: ModelProfile, kind: str, point: str) -> LayerTimes:
    """Layer times of a model on a catalogue kind, from its operations and bytes.

    A forward pass takes the layer's overhead plus FLOP over throughput; a backward pass has twice the
    FLOP; an update moves the parameter bytes several times through memory.

    Args:
        profile: The model; its own layer times are not used.
        kind: A kind of the catalogue.
        point: One of its operating points.

    Raises:
        UsageError: The catalogue has no such kind or point.
    """
    entry = catalogue_entry(kind)
    mode = entry.point(point)

    def pass_s_B(layer: LayerProfile, *, passes: int) -> tuple[float, ...]:
        per_sample_s = passes * layer.forward_flop / mode.train_flop_per_s
        return tuple(entry.layer_overhead_s + per_sample_s * batch for batch in BATCHES)

    def update_s(layer: LayerProfile) -> float:
        if layer.param_bytes == 0:
            return 0.0
        return entry.layer_overhead_s + entry.update_traffic * layer.param_bytes / mode.memory_bytes_per_s

    return LayerTimes(
        model=profile.model,
        kind=kind,
        point=point,
        batch_B=BATCHES,
        forward_s_LB=tuple(pass_s_B(layer, passes=1) for layer in profile.layers),
        backward_s_LB=tuple(pass_s_B(layer, passes=2) for layer in profile.layers),
        update_s_L=tuple(update_s(layer) for layer in profile.layers),
        provenance=Provenance(
            meter="none",
            source="modelled",
            command="greentrain_datasets.catalogue.modelled_layer_times",
            host=f"none; catalogue kind {kind} ({entry.title})",
            versions={"greentrain": VERSION},
            trials_n=0,
            note=(
                f"forward FLOP of {profile.model!r} over {mode.train_flop_per_s:.3g} FLOP/s "
                f"({entry.train_efficiency:.0%} of peak FP32, assumed) plus {entry.layer_overhead_s * 1e6:.0f} us "
                f"per layer and pass (assumed); sources: {'; '.join(entry.sources)}"
            ),
        ),
    )


@cache
def _entries() -> dict[str, CatalogueEntry]:
    file = read_toml(_FILE, _CatalogueFile)
    return {row.name: _entry(row, file.assumptions) for row in file.kind}


def _entry(row: _KindRow, assumed: _Assumptions) -> CatalogueEntry:
    where = f"{_FILE.name}: kind {row.name}"
    memory_bytes = parse_quantity(row.memory, "bytes", where=f"{where}.memory")
    reserved_bytes = parse_quantity(row.reserved, "bytes", where=f"{where}.reserved")
    require(reserved_bytes < memory_bytes, f"{where}: reserved memory must be below the memory")
    return CatalogueEntry(
        kind=row.name,
        title=row.title,
        year=row.year,
        memory_bytes=int(memory_bytes - reserved_bytes),
        idle_w=parse_quantity(row.idle, "power", where=f"{where}.idle"),
        idle_basis=row.idle_basis,
        layer_overhead_s=parse_quantity(row.layer_overhead, "time", where=f"{where}.layer_overhead"),
        train_efficiency=assumed.train_efficiency,
        update_traffic=assumed.update_traffic,
        cubic_share=assumed.cubic_share,
        points=tuple(_point(row, point, assumed) for point in row.points),
        sources=row.sources.named,
    )


def _point(row: _KindRow, point: _PointRow, assumed: _Assumptions) -> CataloguePoint:
    where = f"{_FILE.name}: kind {row.name}, point {point.name}"
    clock_hz = parse_quantity(point.clock, "frequency", where=f"{where}.clock", minimum=1.0)
    cpu_hz = _optional(point.cpu, lambda text: parse_quantity(text, "frequency", where=f"{where}.cpu", minimum=1.0))
    peak_flop_per_s = point.cores * row.flop_per_core_cycle * clock_hz
    return CataloguePoint(
        point=OperatingPoint(
            name=point.name,
            cpu_hz=clock_hz if row.cpu_only else cpu_hz,
            gpu_hz=None if row.cpu_only else clock_hz,
            cap_w=_optional(point.cap, lambda text: parse_quantity(text, "power", where=f"{where}.cap")),
        ),
        peak_flop_per_s=peak_flop_per_s,
        train_flop_per_s=peak_flop_per_s * assumed.train_efficiency,
        memory_bytes_per_s=parse_quantity(point.bandwidth, "bandwidth", where=f"{where}.bandwidth", minimum=1.0),
        busy_w=parse_quantity(point.busy, "power", where=f"{where}.busy"),
    )


def _optional(text: str | None, convert: Callable[[str], float]) -> float | None:
    return None if text is None else convert(text)
