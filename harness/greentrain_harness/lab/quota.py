"""One command under a CPU quota of its own: a slower worker on the same machine.

``python -m greentrain_harness.lab.quota PERCENT -- COMMAND …`` makes a control group, runs the command
in it, passes signals and the exit status on, and removes the group. The command never outlives it, even when it is
killed. Needs root, as the lab does.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from types import FrameType

from greentrain.errors import GreentrainError, UsageError
from greentrain_harness.lab.cgroups import (
    NodeCgroup,
    check_quota,
    create,
    find_mounts,
    join,
    leftovers,
    processes,
    remove,
)
from greentrain_harness.lab.lifecycle import require_root_on_linux

__all__ = ["main", "quota_argv", "require_quota"]

_MODULE = "greentrain_harness.lab.quota"
_NAME = re.compile(r"gtquota-(\d+)")
_PR_SET_PDEATHSIG = 1


def quota_argv(quota_percent: float, argv: Sequence[str]) -> list[str]:
    """The argv that runs a command under a quota.

    Args:
        quota_percent: Quota in percent of one core.
        argv: The command.
    """
    return [sys.executable, "-m", _MODULE, f"{quota_percent:g}", "--", *argv]


def require_quota(quota_percent: float) -> None:
    """Check that this machine can enforce a quota.

    Raises:
        UnavailableError: Not Linux, not root, or no CPU control group.
        UsageError: The quota is more than the machine has.
    """
    require_root_on_linux()
    find_mounts()
    check_quota(quota_percent, cores=os.cpu_count() or 1)


def main(arguments: list[str]) -> int:
    """Run the command; returns its exit status, 128 + n when signal n ended it."""
    if len(arguments) < 3 or arguments[1] != "--":
        sys.stderr.write(f"usage: python -m {_MODULE} PERCENT -- COMMAND …\n")
        return UsageError.exit_code
    try:
        return _run(float(arguments[0]), arguments[2:])
    except (GreentrainError, ValueError) as error:
        sys.stderr.write(f"Error: {error}\n")
        return error.exit_code if isinstance(error, GreentrainError) else UsageError.exit_code


def _run(quota_percent: float, argv: Sequence[str]) -> int:
    require_quota(quota_percent)
    mounts = find_mounts()
    _remove_abandoned()
    node = create(mounts, f"gtquota-{os.getpid()}", quota_percent)
    child: subprocess.Popen[bytes] | None = None

    def pass_on(number: int, frame: FrameType | None) -> None:
        if child is not None:
            child.send_signal(number)

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, pass_on)
    try:
        child = subprocess.Popen(list(argv), preexec_fn=_entering(node))
        status = child.wait()
    finally:
        with contextlib.suppress(GreentrainError):
            remove(node.folders)
    return status if status >= 0 else 128 - status


def _entering(node: NodeCgroup) -> Callable[[], None]:
    """What the child does before it becomes the command: none of its work may escape the quota."""
    libc = ctypes.CDLL(None)
    wrapper = os.getpid()

    def enter() -> None:
        join(node, os.getpid())
        # Whoever kills the wrapper means the command.
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != wrapper:
            os._exit(128 + signal.SIGKILL)

    return enter


def _remove_abandoned() -> None:
    """Remove the empty groups of wrappers that were killed."""
    for folder in leftovers(find_mounts(), _NAME):
        match = _NAME.fullmatch(folder.name)
        assert match is not None
        with contextlib.suppress(GreentrainError, ProcessLookupError):
            try:
                os.kill(int(match.group(1)), 0)
            except ProcessLookupError:
                if not processes((folder,)):
                    remove((folder,))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
