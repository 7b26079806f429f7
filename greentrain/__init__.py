"""greentrain: train models on your own devices together, for the fewest joules.

The names below load on first use, so that ``import greentrain`` stays light.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from greentrain.version import VERSION

if TYPE_CHECKING:
    from greentrain_harness.window import measure as measure

__version__ = VERSION

__all__ = ["__version__", "measure"]


def __getattr__(name: str) -> object:
    if name == "measure":
        from greentrain_harness.window import measure

        return measure
    raise AttributeError(f"module 'greentrain' has no attribute {name!r}")
