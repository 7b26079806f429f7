"""A worker never outlives its launcher, however that ends.

All workers have the read end of one pipe as their standard input; the launcher alone holds the write end
and never writes. The kernel closes it when the launcher ends, also by SIGKILL, and every reader sees the
end of the file. Unlike a parent-death signal this passes through wrappers (quota, lab) that stand between.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time

from greentrain.errors import RunError

__all__ = ["LAUNCHED", "end_with_launcher", "launcher_is_gone"]

# In a launched worker's environment: its standard input is the pipe, its standard output is read.
LAUNCHED = "GREENTRAIN_LAUNCHED"
_GRACE_S = 5.0

_gone = threading.Event()


def end_with_launcher() -> bool:
    """End this process as soon as its launcher is gone. Call early in a worker.

    Returns:
        Whether this process was started by a launcher; False: by a person.
    """
    # What this process starts itself has another standard input.
    if os.environ.pop(LAUNCHED, None) is None:
        return False
    threading.Thread(target=_watch, name="lifeline", daemon=True).start()
    return True


def launcher_is_gone() -> bool:
    """Whether this process ends because its launcher is gone."""
    return _gone.is_set()


def _watch() -> None:
    with contextlib.suppress(OSError):
        while os.read(0, 1):
            pass
    _gone.set()
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.write("Error: the launcher is gone, this worker ends with it.\n")
        sys.stderr.flush()
    # In order first, so that clocks and caps are restored; the main thread may wait inside C++ for long, though.
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_GRACE_S)
    os._exit(RunError.exit_code)
