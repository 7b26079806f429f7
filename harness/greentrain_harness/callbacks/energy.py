"""TrainingEnergy: joules of a training that somebody else drives, so far and in the end.

    energy = TrainingEnergy(intensity=intensity(country="FRA", kg_per_kwh=None))
    energy.start()
    for batch in loader:
        train_on(batch)
        energy.add_samples(len(batch))
    print(energy.stop())

It measures the board that this process runs on. Where a launcher starts several ranks there, the first one counts and
the others know nothing; joules of several boards are not added up.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec

from greentrain.carbon import Intensity, co2e_kg
from greentrain.errors import GreentrainError
from greentrain.power import Source
from greentrain_harness.window import Window, measure

__all__ = ["EnergyFigures", "TrainingEnergy", "ranks_here"]

_log = logging.getLogger("greentrain")


class EnergyFigures(msgspec.Struct, frozen=True, kw_only=True):
    """What a training took; ``None`` where it is not known.

    Attributes:
        energy_j: Joules of the board.
        error_j: ± joules.
        duration_s: Seconds that were measured.
        samples: Samples trained on by the ranks of this board; None when nobody counted.
        energy_j_per_sample: Joules per sample.
        error_j_per_sample: ± of it.
        power_w: Mean watts.
        co2e_kg: Kilograms of CO2e; None without an intensity.
        source: ``measured`` or ``modelled``.
        meter: Name of the meter.
        note: What a reader must know.
    """

    energy_j: float | None
    error_j: float | None
    duration_s: float
    samples: int | None
    energy_j_per_sample: float | None
    error_j_per_sample: float | None
    power_w: float | None
    co2e_kg: float | None
    source: Source | None
    meter: str | None
    note: str

    def metrics(self, prefix: str = "greentrain/") -> dict[str, float]:
        """The known figures by name, for a logger; empty where nothing was measured."""
        names = ("energy_j", "error_j", "energy_j_per_sample", "error_j_per_sample", "power_w", "co2e_kg")
        values: dict[str, float | None] = {name: getattr(self, name) for name in names}
        return {f"{prefix}{name}": value for name, value in values.items() if value is not None}


class TrainingEnergy:
    """Measures from :meth:`start` to :meth:`stop`; a sensor that is missing or lost never stops the training.

    Args:
        device: Meter, as of ``greentrain.measure``.
        intensity: Of the grid, for CO2e.
        sysroot: Prefix of /sys, /proc and /etc.
        synchronize: Waits for work on a GPU; torch's own where it has one and none is given.
    """

    def __init__(
        self, *, device: str = "auto", intensity: Intensity | None = None, sysroot: Path = Path("/"),
        synchronize: Callable[[], object] | None = None,
    ) -> None:  # fmt: skip
        self._device, self._intensity, self._sysroot = device, intensity, sysroot
        self._synchronize = synchronize or _torch_synchronize
        self._samples: int | None = None
        self._window: Window | None = None
        self._part: Window | None = None
        # Joules and ± of the parts that have ended; None as soon as one is not known.
        self._energy_j: float | None = 0.0
        self._error_j: float | None = 0.0
        self._source: Source | None = None
        self._meter: str | None = None
        self._duration_s = 0.0

    def start(self) -> None:
        """Open the meter and begin; a second call without :meth:`stop` does nothing."""
        if self._window is not None:
            return
        self._samples, self._energy_j, self._error_j, self._duration_s = None, 0.0, 0.0, 0.0
        try:
            window = measure(
                "training", device=self._device, sysroot=self._sysroot, synchronize=self._synchronize
            ).__enter__()
        except GreentrainError as error:
            _log.warning("nothing is measured: %s", error)
            return
        self._window = window
        self._part = window.part().__enter__()

    def add_samples(self, count: int) -> None:
        """Count samples that were trained on."""
        self._samples = count + (self._samples or 0)

    def set_samples(self, count: int) -> None:
        """Say how many samples have been trained on since the start."""
        self._samples = count

    def so_far(self) -> EnergyFigures:
        """The figures until now; it takes about as long as reading the sensor once."""
        if self._window is not None and self._part is not None:
            self._end_part()
            self._part = self._window.part().__enter__()
        return self._figures()

    def stop(self) -> EnergyFigures:
        """End, close the meter and give the figures."""
        if self._window is not None:
            self._end_part()
            self._window.__exit__(None, None, None)
            # The whole is known better than the sum of its parts, whose ends each add an error.
            self._energy_j, self._error_j = self._window.energy_j, self._window.error_j
            self._duration_s = self._window.duration_s
        figures = self._figures()
        self._window = None
        if figures.energy_j is not None:
            _log.info("training: %s", figures)
        return figures

    def _end_part(self) -> None:
        if self._part is None:
            return
        self._part.__exit__(None, None, None)
        energy_j, error_j = self._part.energy_j, self._part.error_j
        self._duration_s += self._part.duration_s
        known = self._energy_j is not None and energy_j is not None
        self._energy_j = (self._energy_j or 0.0) + (energy_j or 0.0) if known else None
        # Errors of one sensor do not cancel.
        self._error_j = (self._error_j or 0.0) + (error_j or 0.0) if known and error_j is not None else None
        self._source, self._meter = self._part.source, self._part.meter
        self._part = None

    def _figures(self) -> EnergyFigures:
        window, samples = self._window, self._samples
        energy_j = self._energy_j if window is not None else None
        error_j = self._error_j if energy_j is not None else None
        duration_s = self._duration_s

        def per_sample(value_j: float | None) -> float | None:
            return value_j / samples if value_j is not None and samples else None

        return EnergyFigures(
            energy_j=energy_j,
            error_j=error_j,
            duration_s=duration_s,
            samples=samples,
            energy_j_per_sample=per_sample(energy_j),
            error_j_per_sample=per_sample(error_j),
            power_w=energy_j / duration_s if energy_j is not None and duration_s > 0 else None,
            co2e_kg=co2e_kg(energy_j, self._intensity) if energy_j is not None and self._intensity else None,
            source=self._source,
            meter=self._meter,
            note=window.note if window is not None else "nothing was measured",
        )


def ranks_here(world: int) -> int:
    """How many ranks of a job run on this board, as torchrun says it; all of them where nobody says.

    Args:
        world: Ranks of the job.
    """
    text = os.environ.get("LOCAL_WORLD_SIZE", "")
    return int(text) if text.isdecimal() and int(text) > 0 else world


def _torch_synchronize() -> None:
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()
