"""Entering a node: control group and network namespace first, then the command itself.

``python -m greentrain_harness.lab.enter LAB NODE -- COMMAND …`` becomes the command (exec), so that its
process id, signals and exit status are the command's own. Only the network namespace is entered, unlike
``ip netns exec``, which also mounts a new /sys and so hides the control groups from the command.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from greentrain.errors import GreentrainError, RunError, UnavailableError, UsageError
from greentrain_harness.lab.cgroups import join
from greentrain_harness.lab.state import Lab, LabNode, driver_runs, read_lab

__all__ = ["enter_node", "exec_argv", "main"]

_MODULE = "greentrain_harness.lab.enter"
_NETNS = Path("/run/netns")
_CLONE_NEWNET = 0x4000_0000


def exec_argv(lab: Lab, node: str, argv: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """How to start a command inside a node with ``subprocess.Popen`` (no shell).

    Args:
        lab: The lab.
        node: Name of the node.
        argv: The command.

    Returns:
        The argv to start, and the variables to add to the environment.

    Raises:
        UsageError: The lab has no such node, or the command is empty.
        RunError: The sensor driver is gone, so that the node's joules would be made up.
    """
    found = lab.node(node)
    if not driver_runs(lab):
        raise RunError(
            f"the sensor driver of lab {lab.name!r} (process {lab.sensors_pid}) is gone; its watts stand still.",
            hint=f"Run: greentrain lab down --name {lab.name}, then set it up again.",
        )
    if not argv:
        raise UsageError("no command to run in the node.", hint="Put it after --, as in: lab exec node0 -- uname -a")
    environment = {
        "GREENTRAIN_SYSROOT": found.sysroot,
        "GREENTRAIN_DEVICE_ID": found.name,
        "GREENTRAIN_LAB": f"{lab.name}/{found.name}",
        "GLOO_SOCKET_IFNAME": "eth0",
        "TP_SOCKET_IFNAME": "eth0",
        "OMP_NUM_THREADS": "1",
    }
    return [sys.executable, "-m", _MODULE, lab.name, found.name, "--", *argv], environment


def enter_node(node: LabNode) -> None:
    """Move this process into a node: what it does and starts from now on runs there.

    Raises:
        UnavailableError: No permission.
        RunError: The control group or the namespace is gone.
    """
    join(node.cgroup, os.getpid())
    path = _NETNS / node.namespace
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise RunError(
            f"{path}: the node's namespace cannot be opened ({error.strerror}).",
            hint="Run: greentrain lab down, then greentrain lab up",
        ) from error
    try:
        # os.setns exists from Python 3.12 on.
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.setns(handle, _CLONE_NEWNET) != 0:
            raise UnavailableError(
                f"{path}: cannot be entered ({os.strerror(ctypes.get_errno())}).", hint="Run as root."
            )
    finally:
        os.close(handle)


def main(arguments: list[str]) -> int:
    """Enter the node and become the command; returns only when that fails."""
    if len(arguments) < 4 or arguments[2] != "--":
        sys.stderr.write(f"usage: python -m {_MODULE} LAB NODE -- COMMAND …\n")
        return UsageError.exit_code
    name, node, _, *argv = arguments
    try:
        enter_node(read_lab(name).node(node))
        os.execvp(argv[0], argv)
    except GreentrainError as error:
        sys.stderr.write(f"Error: {error.message}\n" + (f"Hint: {error.hint}\n" if error.hint else ""))
        return error.exit_code
    except OSError as error:
        # The statuses that a shell gives: 127 not found, 126 found but not executable.
        sys.stderr.write(f"Error: {argv[0]}: {error.strerror}.\n")
        return 127 if isinstance(error, FileNotFoundError) else 126


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
