"""Files of a run that come back from a host: what is kept, and what is refused."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

from greentrain.errors import RunError
from greentrain.runtime import remote

HOST = remote.Host(target="me@host", port=None, folder="runs-there", python="python3")


def _archive(**contents: bytes) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name, content in contents.items():
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(content), 0o6755
            archive.addfile(member, io.BytesIO(content))
        link = tarfile.TarInfo("./link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc"
        archive.addfile(link)
    return stream.getvalue()


def _answer(monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    def run(host: remote.Host, command: str, sent: bytes) -> bytes:
        return data

    monkeypatch.setattr(remote, "_run", run)


def test_only_new_plain_files_come(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_bytes(b"mine")
    _answer(monkeypatch, _archive(**{"./summary.json": b"theirs", "./logs/b.log": b"words"}))
    assert remote.fetch_run(HOST, "r", tmp_path) == ["logs/b.log"]
    assert (tmp_path / "summary.json").read_bytes() == b"mine"
    assert (tmp_path / "logs" / "b.log").read_bytes() == b"words"
    assert (tmp_path / "logs" / "b.log").stat().st_mode & 0o7111 == 0
    assert not (tmp_path / "link").exists()


@pytest.mark.parametrize("name", ["../escaped", "/tmp/greentrain-escaped", "inside/../../escaped"])
def test_what_would_leave_the_folder_is_refused(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    _answer(monkeypatch, _archive(**{name: b"x"}))
    with pytest.raises(RunError, match="lies outside of the run's folder"):
        remote.fetch_run(HOST, "r", folder)
    assert list(folder.iterdir()) == []
    assert not (tmp_path / "escaped").exists()
    assert not Path("/tmp/greentrain-escaped").exists()
