"""SideSettings: the shape of a side network."""

from __future__ import annotations

from typing import Literal

import msgspec

from greentrain._checks import require

__all__ = ["SideSettings"]


class SideSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The shape of a side network (Parallel Adapters, arXiv 2408.10746).

    Attributes:
        reduction: All widths of the backbone are divided by it (r).
        temperature: Of the gate ``sigmoid(alpha / temperature)``.
        dropped_ratio: Part of the layers that get no side layer; neither computed nor cached.
        start: Side layers start as the most important parts of the backbone's layers, or at random.
    """

    reduction: int = 8
    temperature: float = 0.1
    dropped_ratio: float = 0.0
    start: Literal["pruned", "random"] = "pruned"

    def __post_init__(self) -> None:
        require(self.reduction >= 1, f"reduction is {self.reduction}, expected at least 1")
        require(self.temperature > 0, f"temperature is {self.temperature}, expected above 0")
        require(0 <= self.dropped_ratio < 1, f"dropped_ratio is {self.dropped_ratio}, expected 0 to below 1")

    def width(self, whole: int) -> int:
        """A width of the side network from one of the backbone."""
        return max(whole // self.reduction, 1)

    def kept(self, layers_n: int) -> tuple[bool, ...]:
        """Which layers get a side layer; the dropped ones are spread evenly, the last one is kept."""
        marks = [int((index + 1) * (1 - self.dropped_ratio) + 1e-9) for index in range(layers_n)]
        kept = [after > before for before, after in zip([0, *marks], marks, strict=False)]
        if layers_n:
            kept[-1] = True
        return tuple(kept)
