"""Hosts reached over SSH, all of them this machine."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path

import pytest
from work_folder import until

from greentrain.runtime.network import free_port

__all__ = ["launch_over_ssh", "ssh_port"]

_SSHD = shutil.which("sshd") or ("/usr/sbin/sshd" if Path("/usr/sbin/sshd").exists() else None)


@pytest.fixture
def ssh_port(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Generator[int, None, None]:
    """An SSH server of this user on this machine, and an ``ssh`` that knows its key."""
    if _SSHD is None or shutil.which("ssh") is None:
        pytest.skip("needs OpenSSH's client and server")
    keys = tmp_path / "keys"
    keys.mkdir(mode=0o700)
    for name in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(keys / name)], check=True)
    (keys / "allowed").write_text((keys / "user.pub").read_text())
    port = free_port()
    config = keys / "sshd_config"
    config.write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {keys}/host\nAuthorizedKeysFile {keys}/allowed\n"
        f"PidFile none\nStrictModes no\nUsePAM no\n"
    )
    wrapper = tmp_path / "bin" / "ssh"
    wrapper.parent.mkdir()
    wrapper.write_text(
        f"#!/bin/sh\nexec {shutil.which('ssh')} -F none -i {keys}/user -o StrictHostKeyChecking=no "
        f'-o UserKnownHostsFile={keys}/known -o LogLevel=ERROR "$@"\n'
    )
    wrapper.chmod(0o755)
    monkeypatch.setenv("PATH", f"{wrapper.parent}:{os.environ['PATH']}")
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)
    server = subprocess.Popen([_SSHD, "-D", "-e", "-f", str(config)], stderr=subprocess.PIPE, text=True)
    try:
        until(lambda: subprocess.run(["ssh", "-p", str(port), "127.0.0.1", "true"], check=False).returncode == 0)
        yield port
    finally:
        server.kill()
        server.communicate()


def launch_over_ssh(folder: Path, port: int, elsewhere: Path) -> None:
    """Both devices of the cluster are hosts reached over SSH, with a folder each."""
    text = (folder / "cluster.toml").read_text()
    for device in ("a", "b"):
        text = text.replace(
            f'profile = "profiles/{device}.device.json"\nlaunch = "local"',
            f'profile = "profiles/{device}.device.json"\nlaunch = "ssh:127.0.0.1:{port}"\n'
            f'folder = "{elsewhere}/{device}"\npython = "{sys.executable}"',
        )
    (folder / "cluster.toml").write_text(text)
