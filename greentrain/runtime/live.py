"""What a run costs while it goes on: watts and joules per sample by device, and what a usual round looks like."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from greentrain.runtime.messages import DeviceLive, Digest

__all__ = ["LiveView", "UsualRound", "usual_round"]


class UsualRound(NamedTuple):
    """Medians over the last rounds.

    Attributes:
        step_s: Seconds of a round.
        busy_s: Seconds in which each device computed.
        energy_j: Joules of each device; those whose meter was silent are missing.
    """

    step_s: float
    busy_s: dict[str, float]
    energy_j: dict[str, float]


@dataclass
class _Account:
    last: Digest | None = None
    energy_j: float = 0.0
    metered_n: int = 0


@dataclass
class LiveView:
    """Adds up the devices' rounds as they become known.

    Attributes:
        batch: Samples per round.
    """

    batch: int
    _accounts: defaultdict[str, _Account] = field(default_factory=lambda: defaultdict[str, _Account](_Account))

    def take(self, digests: Mapping[str, dict[int, Digest]]) -> None:
        """Add what is new: of each device its latest round, which follows those that were taken before."""
        for device, rounds in digests.items():
            account = self._accounts[device]
            latest = next(reversed(rounds.values()), None)
            if latest is None or (account.last is not None and latest.t_start_s <= account.last.t_start_s):
                continue
            account.last = latest
            if latest.energy_j is not None:
                account.energy_j += latest.energy_j
                account.metered_n += 1

    def devices(self) -> dict[str, DeviceLive]:
        """Each device as it stands."""
        return {device: _live(account, self.batch) for device, account in self._accounts.items()}


def _live(account: _Account, batch: int) -> DeviceLive:
    last = account.last
    power_w = None
    if last is not None and last.energy_j is not None and last.duration_s > 0:
        power_w = last.energy_j / last.duration_s
    if account.metered_n == 0:
        return DeviceLive(power_w=power_w, energy_j=None, joules_per_sample=None)
    per_sample_j = account.energy_j / (account.metered_n * batch)
    return DeviceLive(power_w=power_w, energy_j=account.energy_j, joules_per_sample=per_sample_j)


def usual_round(
    digests: Mapping[str, Mapping[int, Digest]], devices: Sequence[str], rounds: range
) -> UsualRound | None:
    """Medians over some rounds; None where a device's are not all known."""
    chosen = {device: [digests.get(device, {}).get(step) for step in rounds] for device in devices}
    known = {device: [one for one in found if one is not None] for device, found in chosen.items()}
    if len(rounds) == 0 or any(len(found) < len(rounds) for found in known.values()):
        return None
    energy_j: dict[str, float] = {}
    for device, found in known.items():
        joules = [one.energy_j for one in found if one.energy_j is not None]
        if len(joules) == len(found):
            energy_j[device] = statistics.median(joules)
    return UsualRound(
        step_s=statistics.median(one.duration_s for found in known.values() for one in found),
        busy_s={device: statistics.median(one.busy_s for one in found) for device, found in known.items()},
        energy_j=energy_j,
    )
