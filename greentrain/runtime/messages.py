"""What a rank tells its launcher and rank 0, and where it writes. Needs no torch, as the launcher does not."""

from __future__ import annotations

from pathlib import Path

import msgspec

from greentrain.ledger import LedgerRow
from greentrain.power import Source

__all__ = ["PEERS_LOST", "Progress", "RankResult", "rank_ledger_path"]

# By these words the launcher tells a rank that lost a peer from the one that failed of itself.
PEERS_LOST = "lost its peers"


class RankResult(msgspec.Struct, frozen=True, kw_only=True):
    """What a rank hands to rank 0 after the last round.

    Attributes:
        rows: Its ledger.
        loss_S: Its part of each round's loss.
        cpu_s_S: Processor seconds of its process in each round.
        peak_bytes: Growth of its memory over training.
        meter: Name and note of its meter.
        source: Of its joules.
        board: Its board.
        scope: Of its meter.
    """

    rows: list[LedgerRow]
    loss_S: list[float]
    cpu_s_S: list[float]
    peak_bytes: int
    meter: str
    source: Source
    board: str
    scope: str


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """A line for the person who watches."""

    step: int
    steps: int
    epoch: int
    loss: float
    elapsed_s: float


def rank_ledger_path(run_dir: Path, rank: int) -> Path:
    """Where a rank appends its rows while it trains."""
    return run_dir / f"rank-{rank}.ledger.csv"
