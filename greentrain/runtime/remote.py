"""Workers on other hosts over SSH: files go there before the run, the worker starts there, the run's files come back.

The ``ssh`` of the system is used, with the keys and names of its own configuration. The worker's standard input is
the connection: when this side ends, however that happens, the worker ends too.
"""

from __future__ import annotations

import io
import shlex
import subprocess
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from greentrain.cluster_file import SSH_LAUNCH, DeviceEntry
from greentrain.errors import RunError, UnavailableError
from greentrain.files import write_bytes
from greentrain.runtime.lifeline import LAUNCHED

__all__ = ["Host", "fetch_run", "has_run", "host_of", "remote_argv", "remove_folder", "send_files"]

_OPTIONS = ("-T", "-o", "BatchMode=yes", "-o", "ConnectTimeout=10", "-o", "ServerAliveInterval=5")
_TRANSFER_TIMEOUT_S = 600.0
_SSH_FAILED = 255


class Host(NamedTuple):
    """Where a worker runs.

    Attributes:
        target: ``user@host`` or a name of the SSH configuration.
        port: Port of its SSH server; None: as configured.
        folder: Folder there for the run's files, from the home folder.
        python: Interpreter there that has greentrain installed.
    """

    target: str
    port: str | None
    folder: str
    python: str

    @property
    def address(self) -> str:
        """Name of the host without the user."""
        return self.target.rpartition("@")[2]


def host_of(entry: DeviceEntry) -> Host | None:
    """The host of an entry of cluster.toml; None when it is not started over SSH."""
    match = SSH_LAUNCH.fullmatch(entry.launch or "")
    return None if match is None else Host(match["target"], match["port"], entry.folder, entry.python)


def _ssh(host: Host, command: str) -> list[str]:
    port = ["-p", host.port] if host.port is not None else []
    return ["ssh", *_OPTIONS, *port, host.target, command]


def remote_argv(
    host: Host, arguments: Sequence[str], environ: Mapping[str, str], *, module: str = "greentrain.cli"
) -> list[str]:
    """The command that runs greentrain on a host, from the run's folder there.

    Args:
        host: Where.
        arguments: What follows ``python -m`` and the module.
        environ: Environment variables for it.
        module: What is run; the command line, unless another one is named.
    """
    settings = [f"{name}={shlex.quote(value)}" for name, value in {**environ, LAUNCHED: "1"}.items()]
    program = [_path(host.python), "-m", module, *(shlex.quote(argument) for argument in arguments)]
    # Its path is taken from the home folder, before the run's folder is entered.
    return _ssh(
        host, f'P={program[0]}; cd {_path(host.folder)} && exec env {" ".join(settings)} "$P" {" ".join(program[1:])}'
    )


def _path(text: str) -> str:
    """A path there, quoted; what has a slash and no root starts at the home folder."""
    if text.startswith("/") or "/" not in text:
        return shlex.quote(text)
    return '"$HOME"/' + shlex.quote(text.removeprefix("~/"))


def send_files(host: Host, files: Mapping[str, Path]) -> None:
    """Copy files into the host's folder.

    Args:
        host: Where.
        files: Local file by its path in the folder there, relative and with forward slashes.

    Raises:
        UnavailableError: There is no ``ssh`` here.
        RunError: The host does not answer, refuses, or cannot keep the files.
    """
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for name, path in files.items():
            archive.add(path, arcname=name, recursive=False)
    folder = _path(host.folder)
    _run(host, f"mkdir -p {folder} && tar -xf - -C {folder}", packed.getvalue())


def has_run(host: Host, run: str) -> bool:
    """Whether a host has a folder of that run.

    Raises:
        RunError: The host does not answer.
    """
    return bool(_run(host, f"test -d {_run_path(host, run)} && echo yes || true", b""))


def remove_folder(host: Host, folder: str) -> None:
    """Remove a folder and what is in it from a host; one that is not there is no error.

    Raises:
        RunError: The host does not answer, or it cannot be removed.
    """
    _run(host, f"rm -rf -- {_path(folder)}", b"")


def fetch_run(host: Host, run: str, folder: Path, *, without: Sequence[str] = ()) -> list[str]:
    """Bring a run's files from a host, but only those that are not here yet.

    Args:
        host: From where.
        run: Name of the run.
        folder: Its folder here.
        without: Names in the folder that stay there.

    Returns:
        Names of the files that came, relative to the folder.

    Raises:
        RunError: The host does not answer, or what it sent is no archive.
    """
    there = _run_path(host, run)
    left = "".join(f" --exclude={shlex.quote(f'./{name}')}" for name in without)
    # A host on which the worker wrote nothing has no such folder: nothing comes.
    data = _run(host, f"test -d {there} && tar -cf -{left} -C {there} . || true", b"")
    if not data:
        return []
    came: list[str] = []
    try:
        with tarfile.open(fileobj=io.BytesIO(data)) as archive:
            for member in archive.getmembers():
                name = PurePosixPath(member.name)
                content = archive.extractfile(member) if member.isfile() else None
                if content is not None and not (folder / name).exists():
                    _check_inside(name, folder)
                    write_bytes(folder / name, content.read())
                    came.append(str(name))
    except (tarfile.TarError, OSError) as error:
        raise RunError(f"the run's files from {host.target} cannot be kept ({error}).") from error
    return came


def _run_path(host: Host, run: str) -> str:
    return _path(f"{host.folder.rstrip('/')}/runs/{run}")


def _check_inside(name: PurePosixPath, folder: Path) -> None:
    """Refuse what would leave the folder; tar's own filters came with Python 3.10.12 and 3.11.4."""
    if not (folder / name).resolve().is_relative_to(folder.resolve()):
        raise tarfile.TarError(f"{str(name)!r} lies outside of the run's folder")


def _run(host: Host, command: str, data: bytes) -> bytes:
    try:
        done = subprocess.run(
            _ssh(host, command), input=data, capture_output=True, timeout=_TRANSFER_TIMEOUT_S, check=False
        )
    except FileNotFoundError as error:
        raise UnavailableError("there is no ssh on this machine.", hint="Install an OpenSSH client.") from error
    except subprocess.TimeoutExpired as error:
        raise RunError(f"{host.target} took longer than {_TRANSFER_TIMEOUT_S:.0f} s to copy files.") from error
    if done.returncode != 0:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        reason = said[-1] if said else f"exit status {done.returncode}"
        cure = (
            "Try: ssh " + host.target if done.returncode == _SSH_FAILED else "Is its disk full or its folder read-only?"
        )
        raise RunError(f"{host.target} cannot be used over SSH ({reason}).", hint=f"{cure}.".replace("?.", "?"))
    return done.stdout
