"""How the ``greentrain`` process ends."""

from __future__ import annotations

import subprocess
import sys

import pytest

CODE = """\
import atexit, sys, threading
import torch.distributed as dist
from greentrain import cli

def hang():
    dist.TCPStore("127.0.0.1", 0, 1, is_master=True, wait_for_workers=False).get("never")

threading.Thread(target=hang, daemon=True).start()
atexit.register(lambda: print("put away"))
cli.main = lambda: (print("last words"), END)
cli.run()
"""


@pytest.mark.parametrize(("end", "code"), [("sys.exit(5)", 5), ("sys.exit()", 0), ("None", 0)])
def test_a_thread_that_torch_holds_spoils_no_exit_status(end: str, code: int) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", CODE.replace("END", end)], capture_output=True, text=True, check=False, timeout=120
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (code, "last words\nput away\n", "")
