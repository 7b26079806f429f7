"""Explanation: what would be otherwise with another device, limit, network or structure."""

from __future__ import annotations

import msgspec

__all__ = ["Explanation", "Figures", "Reason"]


class Figures(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What another plan would cost, under the same cost model.

    Attributes:
        energy_j_per_sample: Joules per sample.
        samples_per_s: Throughput.
        devices: Its participants.
        parallelism: The field's word for it.
        change_ratio: Its objective over that of the chosen plan, less 1; below 0 it is better.
        at_least_ratio: No plan of this sort changes the objective by less (None = only some devices were asked).
    """

    energy_j_per_sample: float
    samples_per_s: float
    devices: tuple[str, ...]
    parallelism: str
    change_ratio: float
    at_least_ratio: float | None


class Reason(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One answer.

    Attributes:
        topic: What it is about: a device, a limit, a change.
        sentence: In words.
        matters: Whether the plan depends on it.
        figures: The plan that the sentence speaks of (None where there is none).
    """

    topic: str
    sentence: str
    matters: bool
    figures: Figures | None = None


class Explanation(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Why a plan is as it is.

    Attributes:
        devices: Why each device is in or out.
        limits: What each limit costs.
        runners_up: The best plans of other devices or another parallelism, best first.
        changes: What a faster network or one more board would bring.
        cut_short: Topics for which the time was too short.
        whole: Whether every answer is about the whole cluster; else some are the best found among the plan's devices
            and those that the question names.
        took_s: Seconds spent.
    """

    devices: dict[str, Reason]
    limits: tuple[Reason, ...]
    runners_up: tuple[Reason, ...]
    changes: tuple[Reason, ...]
    cut_short: tuple[str, ...]
    whole: bool
    took_s: float
