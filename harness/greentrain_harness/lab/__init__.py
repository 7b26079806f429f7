"""An emulated edge cluster on one Linux machine.

A *lab* is a set of nodes: each has a network namespace on a shaped link, a control group with a CPU quota,
and INA3221 sensor files that follow the CPU time its control group really used, through the power curve of
a catalogue board. **Its joules are modelled from real CPU time**; every emulated tree says so in
``etc/greentrain-lab.json``.

The names below load on first use: the small program that enters a node imports this package too.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from greentrain_harness.lab.enter import exec_argv as exec_argv
    from greentrain_harness.lab.lifecycle import down as down
    from greentrain_harness.lab.lifecycle import names_in_use as names_in_use
    from greentrain_harness.lab.lifecycle import up as up
    from greentrain_harness.lab.state import Lab as Lab
    from greentrain_harness.lab.state import LabNode as LabNode
    from greentrain_harness.lab.state import labs as labs
    from greentrain_harness.lab.state import read_lab as read_lab

__all__ = ["Lab", "LabNode", "down", "exec_argv", "labs", "names_in_use", "read_lab", "up"]

_HOME = {
    "Lab": "state",
    "LabNode": "state",
    "down": "lifecycle",
    "exec_argv": "enter",
    "labs": "state",
    "names_in_use": "lifecycle",
    "read_lab": "state",
    "up": "lifecycle",
}


def __getattr__(name: str) -> object:
    if name in _HOME:
        return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
