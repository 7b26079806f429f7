"""A person's own texts: CSV or JSONL, split into training and held-out ones."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np

from greentrain.errors import UsageError

__all__ = ["Texts", "read_texts"]

_HINT = "Give a CSV with a header line, or JSONL with one object per line."


@dataclass(frozen=True)
class Texts:
    """Texts and their classes.

    Attributes:
        texts: All texts, the held-out ones last.
        classes: Class of each.
        labels: Name of each class, sorted.
        train_n: Texts to train with; the others are held out.
    """

    texts: tuple[str, ...]
    classes: np.ndarray
    labels: tuple[str, ...]
    train_n: int


def read_texts(path: Path, text: str, label: str, *, test_ratio: float) -> Texts:
    """Read texts and labels and hold some out, the same on every machine.

    Args:
        path: ``.jsonl`` (or ``.ndjson``), else CSV.
        text: Column or key of the text.
        label: Column or key of the label.
        test_ratio: Part that is held out.

    Raises:
        UsageError: The file is missing or damaged, or has no such column, or fewer than two labels.
    """
    try:
        content = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise UsageError(f"{path}: no such file.", hint=_HINT) from error
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: cannot be read as UTF-8 text ({error}).", hint=_HINT) from error
    lines = path.suffix.lower() in (".jsonl", ".ndjson")
    pairs = _from_jsonl(path, content, text, label) if lines else _from_csv(path, content, text, label)
    pairs = [(words.strip(), name.strip()) for words, name in pairs if words.strip() and name.strip()]
    labels = tuple(sorted({name for _, name in pairs}))
    if len(labels) < 2:
        raise UsageError(f"{path}: the column {label!r} has {len(labels)} different labels, expected at least 2.")
    number = {name: index for index, name in enumerate(labels)}
    order = np.random.RandomState(0).permutation(len(pairs))
    shuffled = [pairs[index] for index in order]
    train_n = len(pairs) - max(round(len(pairs) * test_ratio), 1)
    classes = np.array([number[name] for _, name in shuffled], dtype=np.int64)
    return Texts(tuple(words for words, _ in shuffled), classes, labels, train_n)


def _from_csv(path: Path, content: str, text: str, label: str) -> list[tuple[str, str]]:
    rows = csv.DictReader(io.StringIO(content, newline=""))
    columns = list(rows.fieldnames or ())
    for wanted in (text, label):
        if wanted not in columns:
            raise UsageError(
                f"{path}: has no column {wanted!r}, it has: {', '.join(columns) or 'none'}.",
                hint="Name the columns with --text and --label.",
            )
    try:
        return [(row[text] or "", row[label] or "") for row in rows]
    except csv.Error as error:
        raise UsageError(f"{path}: not a CSV text file ({error}).", hint=_HINT) from error


def _from_jsonl(path: Path, content: str, text: str, label: str) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    for number, line in enumerate(content.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row: object = json.loads(line)
        except json.JSONDecodeError as error:
            raise UsageError(f"{path}: line {number} is no JSON ({error}).", hint=_HINT) from error
        fields = cast("dict[str, object]", row) if isinstance(row, dict) else {}
        if text not in fields or label not in fields:
            keys = ", ".join(fields) or "none"
            raise UsageError(f"{path}: line {number} lacks {text!r} or {label!r}, its keys are: {keys}.", hint=_HINT)
        found.append((str(fields[text]), str(fields[label])))
    return found
