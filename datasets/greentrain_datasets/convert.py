"""Other people's data sets as TrainingData: Hugging Face's ``datasets``, and torch's map-style data sets.

Neither package is imported: what an object offers decides. Everything is read once, into arrays.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from greentrain.errors import UsageError
from greentrain.training_data import IGNORED, TrainingData

__all__ = ["to_training_data"]

_TARGET_NAMES = ("label", "labels", "target", "targets")
_TEST_NAMES = ("test", "validation")
_HELD_OUT_RATIO = 0.1
_LEAST_SAMPLES_N = 10

_Arrays = tuple[tuple[np.ndarray, ...], np.ndarray]


def to_training_data(
    found: object, *, name: str, inputs: Sequence[str] | None = None, target: str | None = None
) -> TrainingData:
    """Training data from whatever holds samples.

    Taken are a TrainingData; a data set of Hugging Face's ``datasets``, whose columns become arrays; a torch data set
    with a length whose samples are (input, target) or ((input, ...), target); and a mapping of splits of either, with
    ``train`` and perhaps ``test`` or ``validation``. Without a held-out split the last 10 % of the samples are kept
    aside, and the source says so. Real numbers become float32, targets int64.

    Args:
        found: The data.
        name: What it is called in messages and reports.
        inputs: Columns that the model takes, in its order; None: all but the target.
        target: Column of the target; None: the one that is called label, labels, target or targets.

    Raises:
        UsageError: It is none of these, a column is missing, rows differ in length, or there are too few samples.
    """
    if isinstance(found, TrainingData):
        return found
    splits = _splits(found, name)
    arrays = {split: _arrays(data, f"{name}, {split}", inputs, target) for split, data in splits.items()}
    (train_inputs, train_targets) = arrays["train"]
    source = f"{type(found).__module__.split('.')[0]}.{type(found).__name__} of the user"
    held_out = next((split for split in _TEST_NAMES if split in arrays), None)
    if held_out is None:
        kept_n = len(train_targets) - max(round(len(train_targets) * _HELD_OUT_RATIO), 1)
        test_inputs, test_targets = tuple(array[kept_n:] for array in train_inputs), train_targets[kept_n:]
        train_inputs, train_targets = tuple(array[:kept_n] for array in train_inputs), train_targets[:kept_n]
        source += f"; no test split, so the last {len(test_targets)} samples are held out"
    else:
        test_inputs, test_targets = arrays[held_out]
        _check_alike(train_inputs, test_inputs, name)
    return TrainingData(
        name=name,
        source=source,
        train_inputs=train_inputs,
        train_targets=train_targets,
        test_inputs=test_inputs,
        test_targets=test_targets,
    )


def _splits(found: Any, name: str) -> dict[str, Any]:
    if not isinstance(found, Mapping):
        return {"train": found}
    if "train" not in found:
        raise UsageError(f"{name}: has the splits {_listed(found)}, expected one called 'train'.")
    return {split: found[split] for split in ("train", *_TEST_NAMES) if split in found}


def _arrays(data: Any, name: str, inputs: Sequence[str] | None, target: str | None) -> _Arrays:
    if hasattr(data, "column_names"):
        found_inputs, targets = _columns(data, name, inputs, target)
    elif hasattr(data, "__getitem__") and hasattr(data, "__len__"):
        found_inputs, targets = _samples(data, name)
    else:
        raise UsageError(
            f"{name}: is a {type(data).__name__}, expected a TrainingData, a data set of 'datasets' or a torch data "
            "set with a length.",
            hint="Return greentrain.training_data.TrainingData from your function.",
        )
    if len(targets) < _LEAST_SAMPLES_N:
        raise UsageError(f"{name}: has {len(targets)} samples, expected at least {_LEAST_SAMPLES_N}.")
    if not np.issubdtype(targets.dtype, np.integer):
        raise UsageError(f"{name}: the targets are {targets.dtype} numbers, expected classes (whole numbers from 0).")
    if targets.min() < 0 and not np.all(targets[targets < 0] == IGNORED):
        raise UsageError(f"{name}: a target is {targets.min()}, expected classes from 0, or {IGNORED} to ignore one.")
    return found_inputs, targets.astype(np.int64)


def _columns(data: Any, name: str, inputs: Sequence[str] | None, target: str | None) -> _Arrays:
    """Columns of a data set of Hugging Face's ``datasets``."""
    there = list(data.column_names)
    if target is None:
        targets = [column for column in _TARGET_NAMES if column in there]
        if len(targets) != 1:
            raise UsageError(
                f"{name}: has the columns {_listed(there)}, expected exactly one of: {', '.join(_TARGET_NAMES)}.",
                hint="Rename the column of the target with rename_column.",
            )
        target = targets[0]
    chosen = [column for column in there if column != target] if inputs is None else list(inputs)
    missing = [column for column in (*chosen, target) if column not in there]
    if missing:
        raise UsageError(f"{name}: has the columns {_listed(there)}, but not {_listed(missing)}.")
    if not chosen:
        raise UsageError(f"{name}: has no column but {target!r}, expected at least one for the model.")
    rows = data.with_format("numpy")[:]
    return tuple(_array(rows[column], f"{name}, column {column!r}") for column in chosen), _array(
        rows[target], f"{name}, column {target!r}"
    )


def _samples(data: Any, name: str) -> _Arrays:
    """Samples (input, target) or ((input, ...), target) of a torch data set."""
    columns: list[list[Any]] = []
    targets: list[Any] = []
    for index in range(len(data)):
        sample = data[index]
        if not isinstance(sample, (tuple, list)) or len(sample) != 2:
            raise UsageError(f"{name}: sample {index} is a {type(sample).__name__}, expected (input, target).")
        values, target = sample
        values = values if isinstance(values, (tuple, list)) else (values,)
        columns = columns or [[] for _ in values]
        if len(values) != len(columns):
            raise UsageError(f"{name}: sample {index} has {len(values)} inputs, the first has {len(columns)}.")
        for column, value in zip(columns, values, strict=True):
            column.append(np.asarray(value))
        targets.append(np.asarray(target))
    found = tuple(_array(column, f"{name}, input {number}") for number, column in enumerate(columns))
    return found, _array(targets, f"{name}, targets")


def _array(rows: Any, name: str) -> np.ndarray:
    """One array of rows of equal shape."""
    cells = [np.asarray(row) for row in rows]
    shapes = sorted({cell.shape for cell in cells})
    if len(shapes) > 1:
        raise UsageError(
            f"{name}: rows have different shapes, such as {shapes[0]} and {shapes[-1]}, expected all alike.",
            hint="Pad or cut them to one length, with a mask as a further input.",
        )
    array = np.stack(cells) if cells else np.empty(0)
    if array.dtype == object or array.dtype.kind in "USO":
        raise UsageError(
            f"{name}: holds text or objects, expected numbers.", hint="Turn text into token ids first, as with map()."
        )
    return array.astype(np.float32) if np.issubdtype(array.dtype, np.floating) else array


def _check_alike(train: Sequence[np.ndarray], test: Sequence[np.ndarray], name: str) -> None:
    shapes = [[list(array.shape[1:]) for array in arrays] for arrays in (train, test)]
    if shapes[0] != shapes[1]:
        raise UsageError(f"{name}: rows to train have the shapes {shapes[0]}, held-out rows {shapes[1]}.")


def _listed(names: Any) -> str:
    return ", ".join(repr(name) for name in names) or "none"
