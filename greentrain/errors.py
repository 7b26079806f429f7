"""The error tree. Every error says what was seen, what was expected, and what to do.

GreentrainError                exit code
├── UsageError                 2   a file, option or argument is wrong
│   └── NotSupportedError      2   a valid wish that this version cannot fulfil
├── InfeasibleError            3   no plan satisfies the constraints
├── UnavailableError           4   hardware, permission or an optional package is missing
└── RunError                   5   something that had started went wrong
"""

from __future__ import annotations

__all__ = [
    "GreentrainError",
    "InfeasibleError",
    "NotSupportedError",
    "RunError",
    "UnavailableError",
    "UsageError",
]


class GreentrainError(Exception):
    """Base of all errors that the command line shows as one sentence and a hint.

    Args:
        message: One sentence: what was seen and what was expected.
        hint: What to do next, or None where the message already says it.
    """

    exit_code: int = 5

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return self.message if self.hint is None else f"{self.message} {self.hint}"


class UsageError(GreentrainError):
    """A file, an option or an argument is wrong; nothing was started."""

    exit_code = 2


class NotSupportedError(UsageError):
    """The wish is well formed, but this version cannot fulfil it."""


class InfeasibleError(GreentrainError):
    """No plan satisfies the constraints; the message names the binding one."""

    exit_code = 3


class UnavailableError(GreentrainError):
    """Hardware, a permission or an optional package is missing on this machine."""

    exit_code = 4


class RunError(GreentrainError):
    """Something that had already started went wrong; what was written is kept."""

    exit_code = 5
