"""TrainingData: real samples as arrays, with their source and licence."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

__all__ = ["IGNORED", "TrainingData"]

# Target where nothing is asked: padding of a text. torch's losses skip it by default.
IGNORED = -100


@dataclass(frozen=True, kw_only=True)
class TrainingData:
    """A data set split into training and held-out samples. Row i of every array belongs to sample i.

    Attributes:
        name: Name of the data set.
        source: Where it comes from, with licence.
        train_inputs: Input arrays of the model, each of shape (samples, ...).
        train_targets: Class of each sample, shape (samples,), or of each of its tokens, shape (samples, tokens), int64;
            ``IGNORED`` where nothing is asked.
        test_inputs: The same for held-out samples.
        test_targets: The same for held-out samples.
    """

    name: str
    source: str
    train_inputs: tuple[np.ndarray, ...]
    train_targets: np.ndarray
    test_inputs: tuple[np.ndarray, ...]
    test_targets: np.ndarray

    def __post_init__(self) -> None:
        for inputs, targets in ((self.train_inputs, self.train_targets), (self.test_inputs, self.test_targets)):
            if not inputs or any(len(array) != len(targets) for array in inputs):
                raise ValueError(f"data set {self.name!r}: every array needs as many rows as there are targets")
