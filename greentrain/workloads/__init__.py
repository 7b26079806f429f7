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

if TYPE_CHECKING:
    from greentrain.workloads.workload import Workload

__all__ = ["load_workload", "workload_names"]

# The nouns themselves; files with an underscore are shared parts.
_NOT_WORKLOADS = frozenset({"families", "losses", "parts", "workload"})

_BRING_YOUR_OWN = """\
Or bring your own as --model path/to/my_net.py:workload, with in that file:
    import torch
    from torch import nn
    from greentrain.workloads.workload import Workload, build_seeded
    workload = Workload(
        name="my-net", description="my own net", dataset="digits",
        build=lambda seed: build_seeded([nn.Flatten, lambda: nn.Linear(64, 10)], seed),
        example=lambda n: ((torch.zeros(n, 1, 8, 8),), torch.zeros(n, dtype=torch.int64)),
        loss=nn.functional.cross_entropy, optimizer="adam", learning_rate=1e-3,
        batch=64, micro_batches=(8, 16), epochs=10, target_accuracy=0.9)"""


def workload_names() -> tuple[str, ...]:
    """Names of the workloads that come with greentrain, by name."""
    modules = (module.name for module in pkgutil.iter_modules(__path__))
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
    if name not in workload_names():
        known = ", ".join(workload_names())
        raise UsageError(f"{name!r} is not a workload, expected one of: {known}.", hint=_BRING_YOUR_OWN)
    module = importlib.import_module(f"{__name__}.{name.replace('-', '_')}")
    workload: Workload = module.WORKLOAD
    return workload


def _from_file(spec: str) -> Workload:
    from greentrain.workloads.workload import Workload

    found = load_attribute(spec, what="Workload")
    if not isinstance(found, Workload):
        raise UsageError(f"{spec}: is a {type(found).__name__}, expected a Workload.", hint=_BRING_YOUR_OWN)
    return found
