"""RunMetrics: the figures of a run as programs take them that people watch their training in."""

from __future__ import annotations

from typing import NamedTuple

import msgspec

__all__ = ["RunMetrics", "Step"]


class Step(NamedTuple):
    """Figures at one optimizer step.

    Attributes:
        number: The step.
        values: By name; every name ends with its unit.
    """

    number: int
    values: dict[str, float]


class RunMetrics(msgspec.Struct, frozen=True, kw_only=True):
    """A run; what was not recorded is absent.

    Attributes:
        run: Its name.
        run_id: The same for every look at the same run.
        totals: By name; every name ends with its unit.
        settings: What was chosen, and where the figures come from.
        steps: Rising.
        energy_j_by_device: Joules of each device.
        source_by_device: ``measured``, ``modelled`` or ``mixed`` joules of each device.
    """

    run: str
    run_id: str
    totals: dict[str, float]
    settings: dict[str, str]
    steps: tuple[Step, ...]
    energy_j_by_device: dict[str, float]
    source_by_device: dict[str, str]
