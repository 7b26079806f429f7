"""Where it is written down what a control has changed. Standard library only: every start looks here.

root              /var/lib/greentrain/restore.json
other users       $XDG_STATE_HOME (or ~/.local/state)/greentrain/restore.json
an emulated tree  <sysroot>/var/lib/greentrain/restore.json
"""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["journal_paths", "restore_pending"]

_NAME = Path("greentrain/restore.json")


def journal_paths(sysroot: Path = Path("/")) -> tuple[Path, ...]:
    """Where journals may lie, this user's own first."""
    machine = sysroot / "var/lib" / _NAME
    if sysroot != Path("/"):
        return (machine,)
    state = os.environ.get("XDG_STATE_HOME")
    home = os.environ.get("HOME")
    if state is None and (os.geteuid() == 0 or home is None):
        return (machine,)
    own = (Path(state) if state else Path(home or "/") / ".local/state") / _NAME
    return (own, machine)


def restore_pending(sysroot: Path = Path("/")) -> tuple[str, ...]:
    """Put back what a killed process left changed; next to nothing to do, and to import, without a journal.

    Returns:
        What was done, or could not be done, one sentence each.
    """
    if not any(os.path.exists(path) for path in journal_paths(sysroot)):  # noqa: PTH110
        return ()
    from greentrain_harness.controls import restore_after_crash

    return restore_after_crash(sysroot)
