from __future__ import annotations

import os
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from leftovers import MARK, resources, session_processes, strangers

# A busy machine is no failure, and the same commit gives the same result everywhere.
settings.register_profile("greentrain", deadline=None, derandomize=True, database=None)
settings.load_profile("greentrain")

# What is ending anyway may take this long.
_GRACE_S = 5.0


@pytest.fixture(scope="session", autouse=True)
def nothing_is_left_behind() -> Iterator[None]:
    """Fails the session when a process, a control group or a namespace of it outlives it."""
    if not Path("/proc/self/environ").exists():
        yield
        return
    mark = uuid.uuid4().hex
    os.environ[MARK] = mark
    before = resources()
    yield
    until_s = time.monotonic() + _GRACE_S
    while session_processes(mark) and time.monotonic() < until_s:
        time.sleep(0.1)
    processes = session_processes(mark)
    found = resources() - before
    found -= strangers(found, mark)
    assert not processes, f"processes outlive the tests: {processes}"
    assert not found, f"control groups or namespaces outlive the tests: {sorted(found)}"
