"""A command under a quota of its own ends with its wrapper, however that ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from work_folder import until

from greentrain_harness.lab.quota import quota_argv

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="a quota needs root on Linux"),
]

TELL = "import os, time; print(os.getpid(), flush=True); time.sleep(60)"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_the_command_ends_with_its_wrapper(number: signal.Signals) -> None:
    with subprocess.Popen(quota_argv(50, [sys.executable, "-c", TELL]), stdout=subprocess.PIPE, text=True) as wrapper:
        assert wrapper.stdout is not None
        pid = int(wrapper.stdout.readline())
        wrapper.send_signal(number)
        try:
            until(lambda: not runs(pid), within_s=10)
        finally:
            if runs(pid):
                os.kill(pid, signal.SIGKILL)


def runs(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
