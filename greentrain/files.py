"""Versioned files: msgspec structs to and from JSON, TOML and CSV; atomic writes; checksums.

A JSON file of greentrain is one object with ``schema`` (``greentrain.<noun>/<version>``),
``tool_version``, ``created_utc`` and the fields of the struct beside them.

History of the schemas
    2026-11  plan/1, device/1, model/1, layers/1, links/1, cluster/1, summary/1, ledger/1, point/1, points/1,
             frontier/1
"""

from __future__ import annotations

import contextlib
import csv
import errno
import hashlib
import io
import os
import sys
import tempfile
from collections.abc import Generator, Iterable, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, TypeVar, cast

import msgspec

from greentrain.errors import RunError, UnavailableError, UsageError
from greentrain.version import VERSION

__all__ = [
    "canonical_sha256",
    "field_message",
    "file_sha256",
    "read_csv",
    "read_json",
    "read_toml",
    "utc_now",
    "write_bytes",
    "write_csv",
    "write_json",
    "write_text",
    "writing",
]

T = TypeVar("T", bound=msgspec.Struct)


def utc_now() -> str:
    """The present instant as ISO 8601 UTC with seconds."""
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def file_sha256(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    return hashlib.sha256(_read_bytes(path)).hexdigest()


def canonical_sha256(value: msgspec.Struct) -> str:
    """Hex SHA-256 of a struct's canonical JSON (sorted keys), the same on every machine."""
    return hashlib.sha256(msgspec.json.encode(value, order="sorted")).hexdigest()


@contextlib.contextmanager
def writing(path: Path) -> Generator[None, None, None]:
    """Turn the operating system's refusal to write ``path`` into one sentence.

    Raises:
        UnavailableError: No permission, or a read-only file system.
        RunError: The disk is full, or another input/output error.
    """
    try:
        yield
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise UnavailableError(
                f"{path}: cannot be written ({os.strerror(error.errno)}).",
                hint="Choose a folder you may write to, or change its permissions.",
            ) from error
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise RunError(
                f"{path}: cannot be written, the disk is full.",
                hint="Free some space and run the command again; files written before are kept.",
            ) from error
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise RunError(
            f"{path}: cannot be written ({reason}).", hint="Check the path and the disk, then run the command again."
        ) from error


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file so that readers see the old or the new content, never a part."""
    with writing(path):
        if path.exists() and not path.is_file() and not path.is_dir():
            # A device or a pipe, such as /dev/stdout, is written to and never replaced.
            path.write_bytes(data)
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            umask = os.umask(0)
            os.umask(umask)
            os.chmod(temporary, 0o666 & ~umask)
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: msgspec.Struct, *, schema: str) -> None:
    """Write a struct with its schema id, the tool's version and the UTC time.

    Args:
        path: The file; its folder is made when missing.
        value: The struct.
        schema: ``greentrain.<noun>/<version>``.
    """
    content = cast("dict[str, object]", msgspec.to_builtins(value, str_keys=True))
    head: dict[str, object] = {"schema": schema, "tool_version": VERSION, "created_utc": utc_now()}
    encoded = msgspec.json.format(msgspec.json.encode({**head, **content}), indent=2)
    write_bytes(path, encoded + b"\n")


def read_json(path: Path, kind: type[T], *, schema: str) -> T:
    """Read a struct written by :func:`write_json`.

    Raises:
        UsageError: The file is missing, no JSON, of another schema, or a field is wrong.
    """
    try:
        content: Any = msgspec.json.decode(_read_bytes(path))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UsageError(
            f"{path}: not valid JSON ({error}).", hint="The file may be cut short; make it again."
        ) from error
    if not isinstance(content, dict):
        raise UsageError(f"{path}: expected a JSON object with schema {schema!r}.")
    fields = cast("dict[str, object]", content)
    found = fields.pop("schema", None)
    if found != schema:
        raise UsageError(
            f"{path}: schema is {found!r}, expected {schema!r}.",
            hint="Give the right kind of file, or make it again with this version of greentrain.",
        )
    fields.pop("tool_version", None)
    fields.pop("created_utc", None)
    try:
        return msgspec.convert(fields, kind)
    except msgspec.ValidationError as error:
        raise UsageError(
            f"{path}: {field_message(error)}", hint="Correct the field, or make the file again."
        ) from error


def read_toml(path: Path, kind: type[T]) -> T:
    """Read a struct from a TOML file written by a person.

    Raises:
        UsageError: The file is missing, no TOML, or a field is unknown, missing or wrong.
    """
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        content = tomllib.loads(_read_bytes(path).decode("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: not valid TOML ({error}).") from error
    try:
        return msgspec.convert(content, kind)
    except msgspec.ValidationError as error:
        raise UsageError(f"{path}: {field_message(error)}", hint="Correct that field of the file.") from error


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write a CSV atomically; ``None`` becomes an empty cell, never 0."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(["" if cell is None else cell for cell in row] for row in rows)
    write_text(path, buffer.getvalue())


def read_csv(path: Path, *, allow_cut: bool = False) -> tuple[list[str], list[list[str]]]:
    """Read a CSV: the header and the rows, all as text.

    Args:
        path: The file.
        allow_cut: Drop what stands behind the last line end, as a killed process leaves it: even where
            it still reads as a row, its last cell may be cut.

    Raises:
        UsageError: The file is missing, empty or not UTF-8 text.
    """
    content = _read_bytes(path)
    if allow_cut:
        content = content[: content.rfind(b"\n") + 1]
    try:
        rows = list(csv.reader(io.StringIO(content.decode("utf-8"), newline="")))
    except (UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"{path}: not a CSV text file ({error}).") from error
    if not rows:
        raise UsageError(f"{path}: empty, expected a header line.")
    return rows[0], rows[1:]


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise UsageError(f"{path}: no such file.", hint="Check the path, or make the file first.") from error
    except IsADirectoryError as error:
        raise UsageError(f"{path}: is a folder, expected a file.") from error
    except PermissionError as error:
        raise UnavailableError(f"{path}: may not be read.", hint="Change its permissions.") from error
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror}).") from error


def field_message(error: msgspec.ValidationError) -> str:
    """A sentence with the field path first: msgspec writes ``... - at `$.a[0].b```."""
    text = str(error)
    message, separator, path = text.rpartition(" - at ")
    if not separator:
        return text if text.endswith(".") else f"{text}."
    return f"field {path.strip('`').removeprefix('$').removeprefix('.')}: {message}."
