"""How every command ends badly: the exit code, one sentence, and one JSON object where asked for."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
from pathlib import Path

import pytest
from command import Command

import greentrain.cli
from greentrain.errors import InfeasibleError, NotSupportedError, RunError, UnavailableError, UsageError


def fail_with(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def fail(**_: object) -> None:
        raise error

    monkeypatch.setattr(greentrain.cli._root, "main", fail)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UsageError("wrong.", hint="Do right."), 2),
        (NotSupportedError("wrong.", hint="Do right."), 2),
        (InfeasibleError("wrong.", hint="Do right."), 3),
        (UnavailableError("wrong.", hint="Do right."), 4),
        (RunError("wrong.", hint="Do right."), 5),
    ],
)
def test_our_errors(
    error: Exception, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fail_with(monkeypatch, error)
    ended = Command(capsys)("simulate", "--json")
    assert ended.code == code
    assert json.loads(ended.out) == {"error": "wrong.", "hint": "Do right."}
    assert ended.err == "Error: wrong.\nHint: Do right.\n"
    assert Command(capsys)("simulate").out == ""


def test_an_interruption(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    fail_with(monkeypatch, KeyboardInterrupt())
    ended = Command(capsys)("simulate", "--json")
    assert (ended.code, json.loads(ended.out)["error"], ended.sentence) == (130, "interrupted.", "interrupted.")


def test_what_nobody_foresaw(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    fail_with(monkeypatch, ZeroDivisionError("by zero"))
    ended = Command(capsys)("simulate", "--json")
    assert ended.code == 5
    assert ended.sentence == json.loads(ended.out)["error"] == "unexpected ZeroDivisionError: by zero."
    with pytest.raises(ZeroDivisionError):
        greentrain.cli.main(["--debug", "simulate"])


def test_a_full_disk_behind_standard_output(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fail_with(monkeypatch, OSError(errno.ENOSPC, "No space left on device"))
    # The test's own standard output must stay.
    monkeypatch.setattr(greentrain.cli, "_drop_output", lambda: None)
    ended = Command(capsys)("simulate", "--json")
    assert (ended.code, ended.out) == (5, "")
    assert ended.sentence == "standard output: cannot be written (No space left on device)."


@pytest.mark.parametrize(
    "arguments",
    [
        ("schedule", "--batch", "abc"),
        ("schedule", "--nonsense"),
        ("nonsense",),
        ("train",),
        ("train", "p", "--rounds", "0"),
    ],
)
def test_usage_errors_are_one_json_object_too(arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    ended = Command(capsys)(*arguments, "--json")
    assert ended.code == 2
    assert json.loads(ended.out)["error"] == ended.sentence


def shell(command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["sh", "-c", command.replace("greentrain", f"'{sys.executable}' -m greentrain.cli")],
        capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize(
    ("command", "code"),
    [
        ("greentrain --version >/dev/full", 5),
        ("greentrain simulate missing.json 2>/dev/full", 2),
        ("greentrain --version >&-", 0),
        ("greentrain simulate missing.json --json >&- 2>&-", 2),
    ],
)
def test_the_exit_code_holds_where_nothing_can_be_written(command: str, code: int) -> None:
    ended = shell(command)
    assert ended.returncode == code
    assert "Traceback" not in ended.stderr
    assert "Exception ignored" not in ended.stderr
