"""What has to be put back, written to a file before anything is changed.

A process that is killed outright leaves the file behind; the next start of greentrain puts everything back
from it (:func:`restore_after_crash`). Where it lies: :mod:`greentrain_harness.restore`.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
from pathlib import Path

import msgspec

from greentrain.errors import GreentrainError, RunError, UnavailableError
from greentrain.files import write_bytes
from greentrain_harness.restore import journal_paths

__all__ = [
    "CommandSetting",
    "FileSetting",
    "NvmlSetting",
    "Setting",
    "forget",
    "keep",
    "put_back",
    "restore_after_crash",
]

_COMMAND_TIMEOUT_S = 60.0


class FileSetting(msgspec.Struct, frozen=True, tag="file"):
    """A file and the text that was found in it."""

    path: str
    text: str


class CommandSetting(msgspec.Struct, frozen=True, tag="command"):
    """A command that puts something back."""

    words: tuple[str, ...]


class NvmlSetting(msgspec.Struct, frozen=True, tag="nvml"):
    """A GPU's power limit; locked clocks are unlocked."""

    uuid: str
    limit_mw: int


Setting = FileSetting | CommandSetting | NvmlSetting


class _Journal(msgspec.Struct, frozen=True):
    """Who changed what.

    Attributes:
        pid: The process that is changing settings.
        start_ticks: When that process started, so that a later process of the same number is not taken for it.
        boot_id: The boot in which it ran.
        settings: What was found, by control, in the order in which it was found.
    """

    pid: int
    start_ticks: int
    boot_id: str
    settings: dict[str, tuple[Setting, ...]]

    @property
    def alive(self) -> bool:
        return self.boot_id == _boot_id() and _start_ticks(self.pid) == self.start_ticks


def keep(control: str, settings: tuple[Setting, ...], sysroot: Path) -> None:
    """Write down what a control found, before its first change.

    Raises:
        UnavailableError: Another process is changing settings, or the journal may not be written.
        RunError: The journal cannot be written for another reason.
    """
    path = journal_paths(sysroot)[0]
    found = _read(path)
    if found is not None and found.alive and found.pid != os.getpid():
        raise UnavailableError(
            f"process {found.pid} is changing clocks or caps of this machine ({path}).", hint="Wait until it has ended."
        )
    before = found.settings if found is not None and found.alive else {}
    _write(path, {**before, control: settings})


def forget(control: str, sysroot: Path) -> None:
    """Strike a control out of this process's journal after everything was put back."""
    path = journal_paths(sysroot)[0]
    found = _read(path)
    if found is None or found.pid != os.getpid():
        return
    left = {name: settings for name, settings in found.settings.items() if name != control}
    if left:
        _write(path, left)
    else:
        _unlink(path)


def put_back(settings: tuple[Setting, ...]) -> list[str]:
    """Put settings back in reverse order; every one is tried.

    Returns:
        What could not be put back, in words.
    """
    failures: list[str] = []
    for setting in reversed(settings):
        try:
            _apply(setting)
        except (OSError, GreentrainError, subprocess.SubprocessError) as error:
            failures.append(f"{_describe(setting)}: {_reason(error)}")
    return failures


def restore_after_crash(sysroot: Path = Path("/")) -> tuple[str, ...]:
    """Put back what a process that was killed had changed.

    Returns:
        What was done, or could not be done, one sentence each; empty when there was nothing to do.
    """
    remarks: list[str] = []
    for path in journal_paths(sysroot):
        try:
            found = _read(path)
        except RunError as error:
            remarks.append(f"{error.message} {error.hint}")
            continue
        if found is None or found.alive:
            continue
        failures = [failure for settings in reversed(found.settings.values()) for failure in put_back(settings)]
        names = " and ".join(found.settings)
        if failures:
            # The journal stays, so that a start with the needed rights can still do it.
            remarks.append(
                f"Process {found.pid} was killed while it had changed {names}; not put back: {'; '.join(failures)}. "
                "Run: sudo greentrain doctor"
            )
        else:
            _unlink(path)
            remarks.append(f"Process {found.pid} was killed while it had changed {names}: everything was put back.")
    return tuple(remarks)


def _apply(setting: Setting) -> None:
    if isinstance(setting, FileSetting):
        Path(setting.path).write_text(setting.text)
    elif isinstance(setting, CommandSetting):
        subprocess.run(
            setting.words, check=True, stdin=subprocess.DEVNULL, capture_output=True, timeout=_COMMAND_TIMEOUT_S
        )
    else:
        from greentrain_harness.controls.nvml_limit import restore_gpu

        restore_gpu(setting.uuid, setting.limit_mw)


def _describe(setting: Setting) -> str:
    if isinstance(setting, FileSetting):
        return f"{setting.path} = {setting.text}"
    if isinstance(setting, CommandSetting):
        return " ".join(setting.words)
    return f"power limit {setting.limit_mw / 1e3:g} W of {setting.uuid}"


def _reason(error: Exception) -> str:
    if isinstance(error, GreentrainError):
        return error.message
    if isinstance(error, OSError):
        return error.strerror or str(error)
    return type(error).__name__


def _write(path: Path, settings: dict[str, tuple[Setting, ...]]) -> None:
    journal = _Journal(pid=os.getpid(), start_ticks=_start_ticks(os.getpid()), boot_id=_boot_id(), settings=settings)
    write_bytes(path, msgspec.json.format(msgspec.json.encode(journal)) + b"\n")


def _read(path: Path) -> _Journal | None:
    """The journal; None without one.

    Raises:
        RunError: It is damaged; nobody but a person can tell what was changed.
    """
    try:
        data = path.read_bytes()
    except OSError:
        return None
    try:
        return msgspec.json.decode(data, type=_Journal)
    except msgspec.DecodeError as error:
        raise RunError(
            f"{path}: cannot be read ({error}).", hint="Check clocks and caps by hand, then delete that file."
        ) from error


def _unlink(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink()


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _start_ticks(pid: int) -> int:
    """When a process started, in clock ticks since the boot; -1 when there is none."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return -1
