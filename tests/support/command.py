"""Run the command line inside the test's own process."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from greentrain.cli import main

__all__ = ["Command", "Ended"]


@dataclass(frozen=True)
class Ended:
    """How a command ended: exit code and what it printed."""

    code: int
    out: str
    err: str

    @property
    def sentence(self) -> str:
        """The one error sentence."""
        sentences = [line for line in self.err.splitlines() if line.startswith("Error: ")]
        assert len(sentences) == 1, self.err
        return sentences[0].removeprefix("Error: ")


class Command:
    """Calls ``greentrain`` with arguments."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, *arguments: str) -> Ended:
        self._capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main(list(arguments))
        code = ended.value.code
        assert isinstance(code, int)
        printed = self._capsys.readouterr()
        return Ended(code, printed.out, printed.err)
