from __future__ import annotations

import errno
import os
from functools import partial
from pathlib import Path

import msgspec
import pytest

from greentrain.errors import GreentrainError, RunError, UnavailableError, UsageError
from greentrain.files import (
    canonical_sha256,
    file_sha256,
    read_csv,
    read_json,
    read_toml,
    utc_now,
    write_bytes,
    write_csv,
    write_json,
    write_text,
    writing,
)
from greentrain.version import VERSION

SCHEMA = "greentrain.toy/1"


class Inner(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    power_w: float

    def __post_init__(self) -> None:
        if self.power_w < 0:
            raise ValueError(f"power_w is {self.power_w}, expected at least 0")


class Toy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    name: str
    parts: tuple[Inner, ...] = ()
    note: str | None = None


TOY = Toy(name="µ", parts=(Inner(power_w=1.5), Inner(power_w=2.0)))


def test_json_round_trip_with_its_birth_certificate(tmp_path: Path) -> None:
    path = tmp_path / "new" / "toy.json"
    write_json(path, TOY, schema=SCHEMA)
    assert read_json(path, Toy, schema=SCHEMA) == TOY
    content = msgspec.json.decode(path.read_bytes())
    assert content["schema"] == SCHEMA
    assert content["tool_version"] == VERSION
    assert len(content["created_utc"]) == len(utc_now()) == 20


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ('{"schema": "greentrain.toy/1", "name": "x", "prats": []}', "Object contains unknown field `prats`."),
        ('{"schema": "greentrain.toy/1"}', "Object missing required field `name`."),
        ('{"schema": "greentrain.toy/1", "name": 3}', "field name: Expected `str`, got `int`."),
        (
            '{"schema": "greentrain.toy/1", "name": "x", "parts": [{"power_w": 1}, {"power_w": -1}]}',
            "field parts[1]: power_w is -1.0, expected at least 0.",
        ),
        (
            '{"schema": "greentrain.toy/1", "name": "x", "parts": [{"power_w": "1"}]}',
            "field parts[0].power_w: Expected `float`, got `str`.",
        ),
        ('{"schema": "greentrain.plan/1", "name": "x"}', "schema is 'greentrain.plan/1', expected 'greentrain.toy/1'."),
        ('{"schema": "greentrain.toy/2", "name": "x"}', "schema is 'greentrain.toy/2', expected"),
        ('{"name": "x"}', "schema is None, expected"),
        ('{"schema": "greentrain.toy/1", "name": "x', "not valid JSON ("),
        ("", "not valid JSON ("),
        ("[1]", "expected a JSON object with schema 'greentrain.toy/1'."),
        ("[" * 100_000, "not valid JSON ("),
    ],
)
def test_wrong_json_names_file_and_field(tmp_path: Path, text: str, sentence: str) -> None:
    path = tmp_path / "toy.json"
    path.write_text(text)
    with pytest.raises(UsageError) as caught:
        read_json(path, Toy, schema=SCHEMA)
    assert caught.value.message.startswith(f"{path}: ")
    assert sentence in caught.value.message


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    path = tmp_path / "toy"
    path.write_bytes(b'{"schema": "\xff\xfe"}')
    with pytest.raises(UsageError, match="not valid JSON"):
        read_json(path, Toy, schema=SCHEMA)
    with pytest.raises(UsageError, match="not valid TOML"):
        read_toml(path, Toy)
    with pytest.raises(UsageError, match="not a CSV text file"):
        read_csv(path)


def test_wrong_toml_names_file_and_field(tmp_path: Path) -> None:
    path = tmp_path / "toy.toml"
    path.write_text('name = "x"\n[[parts]]\npower_w = 3\n')
    assert read_toml(path, Toy).parts[0].power_w == 3.0
    path.write_text('name = "x"\n[[parts]]\npower_w = -3\n')
    with pytest.raises(UsageError, match=r"toy\.toml: field parts\[0\]: power_w is -3\.0"):
        read_toml(path, Toy)
    path.write_text('name = "x\n')
    with pytest.raises(UsageError, match=r"toy\.toml: not valid TOML \(.*line 1"):
        read_toml(path, Toy)


@pytest.mark.parametrize("what", ["missing", "folder", "under a file"])
def test_what_cannot_be_read(tmp_path: Path, what: str) -> None:
    (tmp_path / "file").write_text("x")
    path = {"missing": tmp_path / "no.json", "folder": tmp_path, "under a file": tmp_path / "file" / "no.json"}[what]
    reads = (file_sha256, read_csv, partial(read_toml, kind=Toy), partial(read_json, kind=Toy, schema=SCHEMA))
    for read in reads:
        with pytest.raises(UsageError, match=str(path)):
            read(path)


@pytest.mark.parametrize(
    ("number", "kind", "sentence"),
    [
        (errno.ENOSPC, RunError, "the disk is full"),
        (errno.EDQUOT, RunError, "the disk is full"),
        (errno.EROFS, UnavailableError, "Read-only file system"),
        (errno.EACCES, UnavailableError, "Permission denied"),
        (errno.EPERM, UnavailableError, "Operation not permitted"),
        (errno.EIO, RunError, "Input/output error"),
    ],
)
@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_refused_write_keeps_the_old_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, kind: type[GreentrainError], sentence: str, step: str
) -> None:
    path = tmp_path / "toy.json"
    write_text(path, "old")

    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, step, refuse)
    with pytest.raises(kind, match=sentence) as caught:
        write_json(path, TOY, schema=SCHEMA)
    monkeypatch.undo()
    assert str(path) in caught.value.message
    assert caught.value.hint is not None
    assert path.read_text() == "old"
    assert [found.name for found in tmp_path.iterdir()] == ["toy.json"], "no temporary file stays behind"


def test_an_interrupted_write_keeps_the_old_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "toy.json"
    write_text(path, "old")

    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_text(path, "new")
    monkeypatch.undo()
    assert path.read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 1


def test_a_file_where_a_folder_is_needed(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(RunError, match="cannot be written"):
        write_text(tmp_path / "file" / "toy.json", "x")


def test_an_error_without_a_number_is_still_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"x: cannot be written \(odd\)"), writing(tmp_path / "x"):
        raise OSError("odd")


def test_written_files_obey_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_bytes(tmp_path / "x", b"x")
    finally:
        os.umask(before)
    assert (tmp_path / "x").stat().st_mode & 0o777 == 0o640


def test_csv_missing_is_empty_never_zero(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    write_csv(path, ("a", "b"), [(None, 0), ('say "hi", you', 1.5)])
    assert path.read_text() == 'a,b\n,0\n"say ""hi"", you",1.5\n'
    assert read_csv(path) == (["a", "b"], [["", "0"], ['say "hi", you', "1.5"]])
    path.write_text("")
    with pytest.raises(UsageError, match="empty, expected a header line"):
        read_csv(path)


def test_hashes_do_not_depend_on_the_order_of_fields(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"greentrain")
    assert file_sha256(path) == "0cff5413ff661abb53f75989631e90d073222e50ff581a743b57ec3b46e1264e"
    assert canonical_sha256(Toy(name="a", note="b")) == canonical_sha256(Toy(note="b", name="a"))
    assert canonical_sha256(Toy(name="a")) != canonical_sha256(Toy(name="b"))
