"""A model as a list of blocks with an example batch and real data.

A workload is one file of this package that holds ``WORKLOAD``; its name is the file name with hyphens.
Importing the package itself needs no torch.
"""

from __future__ import annotations

import importlib
import pkgutil
from typing import TYPE_CHECKING

from greentrain.errors import UsageError
from greentrain.plugins import is_file_spec, load_attribute
from greentrain.workloads._own import BRING_YOUR_OWN

if TYPE_CHECKING:
    from greentrain.workloads.workload import Workload

__all__ = ["load_workload", "workload_names"]

# The nouns themselves; folders, and files with an underscore, are shared parts.
_NOT_WORKLOADS = frozenset({"losses", "parts", "workload"})


def workload_names() -> tuple[str, ...]:
    """Names of the workloads that come with greentrain, by name."""
    modules = (module.name for module in pkgutil.iter_modules(__path__) if not module.ispkg)
    return tuple(sorted(name.replace("_", "-") for name in modules if not _skipped(name)))


def _skipped(module: str) -> bool:
    return module.startswith("_") or module in _NOT_WORKLOADS


def load_workload(name: str) -> Workload:
    """The workload of a name, or of a user's file ``path/to/file.py:attribute``.

    Raises:
        UsageError: No such workload; the file is missing, fails, or holds no Workload.
        UnavailableError: The workload needs an optional package that is not installed.
    """
    if is_file_spec(name):
        return _from_file(name)
    if "." in name:
        from greentrain.workloads.adapters.named import is_adapter_name, named_workload

        if is_adapter_name(name):
            return named_workload(name)
    if name not in workload_names():
        known = "\n".join(f"    {known:16} {_named(known).description}" for known in workload_names())
        raise UsageError(
            f"{name!r} is not a workload, expected one of the {len(workload_names())} below.",
            hint=f"They are\n{known}\n{BRING_YOUR_OWN}",
        )
    return _named(name)


def _named(name: str) -> Workload:
    module = importlib.import_module(f"{__name__}.{name.replace('-', '_')}")
    workload: Workload = module.WORKLOAD
    return workload


def _from_file(spec: str) -> Workload:
    from greentrain.workloads.workload import Workload

    found = load_attribute(spec, what="Workload")
    if not isinstance(found, Workload):
        raise UsageError(f"{spec}: is a {type(found).__name__}, expected a Workload.", hint=BRING_YOUR_OWN)
    return found
