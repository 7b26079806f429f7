"""One file per method: ``plan(problem) -> Plan``.

A planner returns a valid, priced plan or raises ``InfeasibleError`` naming the binding constraint.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable

from greentrain.errors import UsageError
from greentrain.objective import Problem
from greentrain.plan import Plan

__all__ = ["PLANNERS", "Planner", "load_planner"]

Planner = Callable[[Problem], Plan]

# Value of --planner -> (module, what it does).
PLANNERS: dict[str, tuple[str, str]] = {
    "auto": ("greentrain.planners.auto", "exact where the sets of devices are few enough, else beam"),
    "exact": ("greentrain.planners.exact", "the proven optimum by bounds and dominance, or the gap that is left"),
    "beam": ("greentrain.planners.beam", "large clusters: a beam over sets of devices, with a proven gap"),
    "single": ("greentrain.planners.single", "the best single device"),
    "data": ("greentrain.planners.data", "all devices share the rows in proportion to their speed"),
    "data-equal": ("greentrain.planners.data_equal", "all devices take equally many rows"),
    "pipeline": ("greentrain.planners.pipeline", "one device per stage, balanced"),
    "tensor": ("greentrain.planners.tensor", "all devices take equally many heads and columns"),
    "sequence": ("greentrain.planners.sequence", "all devices take equally many tokens of every sample"),
    "tensor-sequence": ("greentrain.planners.tensor_sequence", "Galaxy: heads, columns and tokens by speed and memory"),
    "dapple": ("greentrain.planners.dapple", "the fastest hybrid pipeline if all devices were alike"),
    "asteroid": ("greentrain.planners.asteroid", "the fastest hybrid pipeline over all devices"),
}


def load_planner(name: str) -> Planner:
    """The planner of a name.

    Raises:
        UsageError: There is none of that name.
    """
    if name not in PLANNERS:
        raise UsageError(f"unknown planner {name!r}.", hint=f"Known planners: {', '.join(PLANNERS)}.")
    return importlib.import_module(PLANNERS[name][0]).plan
