"""Data sets of other packages become arrays once, with clear errors; the objects here have only their interfaces."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset

from greentrain.errors import UsageError
from greentrain.training_data import TrainingData
from greentrain_datasets.convert import to_training_data
from greentrain_datasets.loaders import load_dataset


class Columns:
    """What Hugging Face's data sets offer, of which plain rows come without a format."""

    def __init__(self, columns: dict[str, Any], formatted: bool = False) -> None:
        self.columns = columns
        self.formatted = formatted

    @property
    def column_names(self) -> list[str]:
        return list(self.columns)

    def with_format(self, name: str) -> Columns:
        assert name == "numpy"
        return Columns(self.columns, formatted=True)

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def __getitem__(self, rows: slice) -> dict[str, Any]:
        assert self.formatted
        return {name: np.asarray(values[rows]) for name, values in self.columns.items()}


def columns(count: int = 20) -> dict[str, Any]:
    ids = np.arange(count * 3).reshape(count, 3)
    return {"ids": ids, "label": np.arange(count) % 2, "mask": np.ones((count, 3))}


def test_columns_become_arrays_and_the_last_tenth_is_held_out() -> None:
    data = to_training_data(Columns(columns()), name="mine")
    assert [array.shape for array in data.train_inputs] == [(18, 3), (18, 3)]
    assert [array.dtype for array in data.train_inputs] == [np.int64, np.float32]
    assert np.array_equal(data.test_inputs[0], columns()["ids"][18:])
    assert data.test_targets.tolist() == [0, 1]
    assert "the last 2 samples are held out" in data.source


def test_columns_can_be_named_and_splits_are_taken() -> None:
    splits = {"train": Columns(columns()), "validation": Columns(columns(12))}
    data = to_training_data(splits, name="mine", inputs=["mask", "ids"], target="label")
    assert [array.dtype for array in data.train_inputs] == [np.float32, np.int64]
    assert len(data.train_targets) == 20
    assert len(data.test_targets) == 12
    assert "held out" not in data.source


def test_samples_of_torch() -> None:
    images, classes = torch.rand(20, 1, 4, 4, dtype=torch.float64), torch.arange(20) % 3
    data = to_training_data(TensorDataset(images, classes), name="mine")
    assert data.train_inputs[0].dtype == np.float32
    assert np.array_equal(data.train_inputs[0], images[:18].float().numpy())
    assert data.train_targets.dtype == np.int64
    pairs = [((image, np.float32(1)), int(kind)) for image, kind in zip(images, classes, strict=True)]
    assert [array.shape for array in to_training_data(pairs, name="mine").train_inputs] == [(18, 1, 4, 4), (18,)]


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (3, "mine, train: is a int, expected a TrainingData"),
        ({"test": Columns(columns())}, "has the splits 'test', expected one called 'train'"),
        (Columns({"ids": np.zeros((20, 2)), "kind": np.zeros(20)}), "the columns 'ids', 'kind', expected exactly one"),
        (Columns({"label": np.zeros(20, dtype=int)}), "has no column but 'label'"),
        (Columns(columns(9)), "has 9 samples, expected at least 10"),
        (Columns({**columns(), "label": np.zeros(20)}), "the targets are float32 numbers, expected classes"),
        (Columns({**columns(), "label": -np.ones(20, dtype=int)}), "a target is -1, expected classes from 0"),
        (Columns({**columns(), "ids": np.array(["a"] * 20)}), "column 'ids': holds text or objects"),
        ([(np.zeros(2 + index % 2), 0) for index in range(20)], r"such as \(2,\) and \(3,\), expected all alike"),
        ([(np.zeros(2), 0), 5], r"sample 1 is a int, expected \(input, target\)"),
        ([((1, 2), 0), ((1,), 0)], "sample 1 has 1 inputs, the first has 2"),
        (
            {"train": Columns(columns()), "test": Columns({**columns(), "ids": np.zeros((20, 4))})},
            r"rows to train have the shapes .* held-out rows",
        ),
    ],
)
def test_what_does_not_fit_is_named(found: object, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        to_training_data(found, name="mine")


def test_a_missing_column_is_named() -> None:
    with pytest.raises(UsageError, match=r"has the columns 'ids', 'label', 'mask', but not 'image'"):
        to_training_data(Columns(columns()), name="mine", inputs=["image"])


def test_data_of_a_function_and_of_a_function_in_a_file(tmp_path: Path) -> None:
    data = to_training_data(Columns(columns()), name="mine")
    assert load_dataset(lambda: data) is data
    with pytest.raises(UsageError, match="the function stopped with ZeroDivisionError"):
        load_dataset(lambda: 1 // 0)
    file = tmp_path / "mine.py"
    file.write_text("def samples():\n    return [((float(i),), i % 2) for i in range(30)]\n")
    found = load_dataset(f"{file}:samples")
    assert isinstance(found, TrainingData)
    assert found.name == "samples"
    assert len(found.train_targets) == 27
