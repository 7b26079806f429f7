"""load_dataset: the training data of a name."""

from __future__ import annotations

from collections.abc import Callable

from greentrain.errors import GreentrainError, UsageError
from greentrain.plugins import is_file_spec, load_attribute
from greentrain.training_data import TrainingData
from greentrain_datasets import digits, reviews, smollm2, words
from greentrain_datasets.convert import to_training_data

__all__ = ["dataset_names", "load_dataset"]

_LOADERS: dict[str, Callable[[], TrainingData]] = {
    "digits": digits.load,
    "digits-32": digits.load_large,
    "movie-reviews": reviews.load,
    "review-words": words.load_classes,
    "review-next-words": words.load_next,
    "review-halves": words.load_halves,
    "review-next-tokens-smollm2": smollm2.load,
}


def dataset_names() -> tuple[str, ...]:
    """Names of the data sets that have a loader."""
    return tuple(_LOADERS)


def load_dataset(source: str | Callable[[], object]) -> TrainingData:
    """The training data of a name, of a user's file ``path/to/file.py:attribute``, or of a function.

    A file or function may give anything that :func:`greentrain_datasets.convert.to_training_data` takes; an attribute
    that is a function is called. The same name gives the same rows in the same order on every machine.

    Raises:
        UsageError: No such data set, or nothing that samples can be taken from.
        UnavailableError: The data, or a package that it needs, is not on this machine.
    """
    if not isinstance(source, str):
        return _made(source, getattr(source, "__name__", type(source).__name__))
    if is_file_spec(source):
        found = load_attribute(source, what="TrainingData")
        name = source.rpartition(":")[2]
        return _made(found, name) if callable(found) else to_training_data(found, name=name)
    if source not in _LOADERS:
        raise UsageError(
            f"{source!r} is not a data set, expected one of: {', '.join(_LOADERS)}.",
            hint="Or name a Python file that holds a TrainingData: path/to/file.py:attribute.",
        )
    return _LOADERS[source]()


def _made(make: Callable[[], object], name: str) -> TrainingData:
    try:
        found = make()
    except GreentrainError:
        raise
    except Exception as error:
        raise UsageError(
            f"data set {name!r}: the function stopped with {type(error).__name__}: {error}.",
            hint="Call it in Python to see where; it is called without arguments.",
        ) from error
    return to_training_data(found, name=name)
