from __future__ import annotations

import pytest

from greentrain import errors
from greentrain.errors import (
    GreentrainError,
    InfeasibleError,
    NotSupportedError,
    RunError,
    UnavailableError,
    UsageError,
)


@pytest.mark.parametrize(
    ("kind", "code"),
    [(UsageError, 2), (NotSupportedError, 2), (InfeasibleError, 3), (UnavailableError, 4), (RunError, 5)],
)
def test_exit_codes(kind: type[GreentrainError], code: int) -> None:
    assert kind("seen.").exit_code == code


def test_the_sentence_and_the_hint() -> None:
    assert str(UsageError("x.toml: no such file.", hint="Make it.")) == "x.toml: no such file. Make it."
    assert str(UsageError("x.toml: no such file.")) == "x.toml: no such file."


def test_every_error_is_in_the_tree_at_the_top_of_the_file() -> None:
    assert errors.__doc__ is not None
    for name in errors.__all__:
        assert issubclass(getattr(errors, name), GreentrainError)
        assert name in errors.__doc__
    assert issubclass(NotSupportedError, UsageError)
