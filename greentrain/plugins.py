"""Things that live outside greentrain's own modules: a user's Python file, the folder of an optional package."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

from greentrain.errors import UnavailableError, UsageError

__all__ = ["is_file_spec", "load_attribute", "package_folder"]


def is_file_spec(name: str) -> bool:
    """Whether a name is of the form ``path/to/file.py:attribute``."""
    path, separator, _ = name.rpartition(":")
    return bool(separator) and path.endswith(".py")


def load_attribute(spec: str, *, what: str) -> object:
    """Run a user's Python file and return one of its attributes.

    Args:
        spec: ``path/to/file.py:attribute``.
        what: What is looked for, for the error message.

    Raises:
        UsageError: The file does not exist, fails when it runs, or has no such attribute.
    """
    text, _, attribute = spec.rpartition(":")
    path = Path(text).expanduser().resolve()
    if not path.is_file():
        raise UsageError(f"{path}: no such file, expected a Python file with a {what}.", hint="Check the path.")
    name = f"greentrain_user_{path.stem}"
    module_spec = importlib.util.spec_from_file_location(name, path)
    if module_spec is None or module_spec.loader is None:
        raise UsageError(f"{path}: is not a Python file, expected one with a {what}.")
    module = importlib.util.module_from_spec(module_spec)
    # Dataclasses and pickling look their module up by name.
    sys.modules[name] = module
    try:
        module_spec.loader.exec_module(module)
    except Exception as error:
        kind = type(error).__name__
        raise UsageError(f"{path}: stopped with {kind}: {error}.", hint=f"Run 'python {path}' to see where.") from error
    if not hasattr(module, attribute):
        raise UsageError(f"{path}: has no attribute {attribute!r}, expected a {what}.", hint="Write file.py:name.")
    return getattr(module, attribute)


def package_folder(package: str, *, hint: str) -> Path:
    """Folder of an installed package, found without importing it.

    Raises:
        UnavailableError: The package is not installed; the hint says how to install it.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise UnavailableError(f"the Python package {package!r} is not installed, it is needed here.", hint=hint)
    return Path(spec.submodule_search_locations[0])
