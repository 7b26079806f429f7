"""What a run is told beside its plan: how gradients travel and how exactly is computed. Needs no torch."""

from __future__ import annotations

from typing import Literal

import msgspec

from greentrain._checks import require, require_positive
from greentrain.errors import UsageError

__all__ = ["Compression", "Precision", "TrainingOptions", "parse_compression"]

Compression = Literal["none", "fp16", "powersgd"]
Precision = Literal["float32", "bf16", "fp16", "auto"]

_DEFAULT_RANK = 4


class TrainingOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Options that all ranks of a run share.

    Attributes:
        compression: How gradients travel in the sum over a group: as they are; as halves; as the product of two thin
            matrices (PowerSGD), which is no longer the exact gradient.
        compression_rank: Columns of those matrices.
        precision: What a device multiplies in; ``auto``: bfloat16 where it has it natively. Weights, optimizer and
            messages stay as they are.
    """

    compression: Compression = "none"
    compression_rank: int = _DEFAULT_RANK
    precision: Precision = "float32"

    def __post_init__(self) -> None:
        require(self.compression in ("none", "fp16", "powersgd"), f"unknown compression {self.compression!r}")
        require(self.precision in ("float32", "bf16", "fp16", "auto"), f"unknown precision {self.precision!r}")
        require(
            self.precision != "fp16" or self.compression != "powersgd",
            "precision fp16 and compression powersgd exclude each other: an overflow would stay in what is left out",
        )
        require_positive(compression_rank=self.compression_rank)

    @property
    def agreed(self) -> str:
        """What the ranks compare in the handshake, as words; nothing by default."""
        rank = f" of rank {self.compression_rank}" if self.compression == "powersgd" else ""
        words = f", gradients as {self.compression}{rank}" if self.compression != "none" else ""
        return words + (f", precision {self.precision}" if self.precision != "float32" else "")


def parse_compression(text: str) -> tuple[Compression, int]:
    """``none``, ``fp16``, ``powersgd`` or ``powersgd:RANK``.

    Raises:
        UsageError: It is none of these.
    """
    name, separator, rank = text.partition(":")
    if name == "powersgd" and (not separator or (rank.isdigit() and int(rank) > 0)):
        return "powersgd", int(rank) if separator else _DEFAULT_RANK
    if not separator and name in ("none", "fp16"):
        return ("none" if name == "none" else "fp16"), _DEFAULT_RANK
    raise UsageError(
        f"--compress is {text!r}, expected none, fp16, powersgd or powersgd:RANK.", hint="For example powersgd:4."
    )
