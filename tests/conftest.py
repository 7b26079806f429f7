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

_before: set[str] = set()


def pytest_sessionstart(session: pytest.Session) -> None:
    """Mark what the session starts; processes of pytest-xdist inherit the mark of the first."""
    if _is_first(session):
        os.environ[MARK] = uuid.uuid4().hex
        _before.update(resources())


@pytest.hookimpl(trylast=True)  # After pytest-xdist has ended its processes.
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail the session when a process, a control group or a namespace of it outlives it."""
    if not _is_first(session):
        return
    mark = os.environ[MARK]
    until_s = time.monotonic() + _GRACE_S
    while session_processes(mark) and time.monotonic() < until_s:
        time.sleep(0.1)
    processes = session_processes(mark)
    found = resources() - _before
    found -= strangers(found, mark)
    if processes or found:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
        what = [f"process {pid}: {command}" for pid, command in processes.items()] + sorted(found)
        print("\nThe tests left behind:", *what, sep="\n  ")


@pytest.fixture(autouse=True)
def _processors() -> Iterator[None]:  # pyright: ignore[reportUnusedFunction]
    """A command that a test runs in this process may keep it to some processors; the next test has all again."""
    before = os.sched_getaffinity(0)
    yield
    if os.sched_getaffinity(0) != before:
        os.sched_setaffinity(0, before)


def _is_first(session: pytest.Session) -> bool:
    return Path("/proc/self/environ").exists() and not hasattr(session.config, "workerinput")
