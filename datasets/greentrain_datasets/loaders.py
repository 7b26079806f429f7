"""load_dataset: the training data of a name."""

from __future__ import annotations

from collections.abc import Callable

from greentrain.errors import UsageError
from greentrain.plugins import is_file_spec, load_attribute
from greentrain.training_data import TrainingData
from greentrain_datasets import digits, reviews

__all__ = ["dataset_names", "load_dataset"]

_LOADERS: dict[str, Callable[[], TrainingData]] = {
    "digits": digits.load,
    "movie-reviews": reviews.load,
}


def dataset_names() -> tuple[str, ...]:
    """Names of the data sets that have a loader."""
    return tuple(_LOADERS)


def load_dataset(name: str) -> TrainingData:
    """The training data of a name, or of a user's file ``path/to/file.py:attribute`` (a TrainingData).

    The same name gives the same rows in the same order on every machine.

    Raises:
        UsageError: No such data set.
        UnavailableError: The data, or a package that it needs, is not on this machine.
    """
    if is_file_spec(name):
        found = load_attribute(name, what="TrainingData")
        if not isinstance(found, TrainingData):
            raise UsageError(f"{name}: is a {type(found).__name__}, expected a TrainingData.")
        return found
    if name not in _LOADERS:
        raise UsageError(
            f"{name!r} is not a data set, expected one of: {', '.join(_LOADERS)}.",
            hint="Or name a Python file that holds a TrainingData: path/to/file.py:attribute.",
        )
    return _LOADERS[name]()
