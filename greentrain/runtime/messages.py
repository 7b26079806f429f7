"""What a rank tells its launcher and rank 0, and where it writes. Needs no torch, as the launcher does not."""

from __future__ import annotations

from pathlib import Path

import msgspec

from greentrain.ledger import LedgerRow
from greentrain.power import Source
from greentrain.summary import Recovery

__all__ = ["PEERS_LOST", "DeviceLive", "Digest", "Progress", "RankResult", "rank_ledger_path", "rank_ledger_paths"]

# By these words the launcher tells a rank that lost a peer from the one that failed of itself.
PEERS_LOST = "lost its peers"


class Digest(msgspec.Struct, frozen=True, kw_only=True):
    """A device's round in one line, so that it outlives the device.

    Attributes:
        step: The round.
        t_start_s: Since the start of the run.
        duration_s: Seconds.
        energy_j: Joules; None when not measured.
        error_j: ± joules.
        cpu_s: Processor seconds.
        busy_s: Seconds in which it computed.
    """

    step: int
    t_start_s: float
    duration_s: float
    energy_j: float | None
    error_j: float | None
    cpu_s: float
    busy_s: float = 0.0


class RankResult(msgspec.Struct, frozen=True, kw_only=True):
    """What a rank hands to the leader after the last round.

    Attributes:
        device: Its device.
        seat: Its number in the ledger.
        rows: Its ledger.
        loss_S: Its part of each round's loss.
        cpu_s_S: Processor seconds of its process, by round.
        peak_bytes: Growth of its memory over training; None where it was lost.
        meter: Name and note of its meter.
        source: Of its joules.
        board: Its board.
        scope: Of its meter.
        recovery_j: Joules that each change of the devices cost it, by generation; None when not measured.
        generation: The one in which it came.
        undone_from: Where it was lost: the first round that the others did again.
        gone: What it knows of devices that were lost.
        recoveries: The changes of the devices that it saw.
    """

    device: str
    seat: int
    rows: list[LedgerRow]
    loss_S: list[float]
    cpu_s_S: dict[int, float]
    peak_bytes: int | None
    meter: str
    source: Source
    board: str
    scope: str
    recovery_j: dict[int, float | None] = {}
    generation: int = 0
    undone_from: int | None = None
    gone: tuple[RankResult, ...] = ()
    recoveries: tuple[Recovery, ...] = ()


class DeviceLive(msgspec.Struct, frozen=True, kw_only=True):
    """A device while it trains; None where its meter does not tell.

    Attributes:
        power_w: Over the last round that is known.
        energy_j: Since the start of the run.
        joules_per_sample: Over the rounds that it metered.
    """

    power_w: float | None
    energy_j: float | None
    joules_per_sample: float | None


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """A line for the person who watches; ``event`` says what has changed besides. No loss before the first round."""

    step: int
    steps: int
    epoch: int
    loss: float | None
    elapsed_s: float
    event: str | None = None
    devices: dict[str, DeviceLive] = {}


def rank_ledger_path(run_dir: Path, rank: int, generation: int = 0) -> Path:
    """Where a rank appends its rows while it trains; one that came back has a file of its own."""
    return run_dir / f"rank-{rank}{f'.{generation}' if generation else ''}.ledger.csv"


def rank_ledger_paths(run_dir: Path) -> list[Path]:
    """All that the ranks have written."""
    return sorted(run_dir.glob("rank-*.ledger.csv"))
