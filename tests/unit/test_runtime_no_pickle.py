"""Nothing that arrives over the network or lies in a file is ever unpickled, which would run its code."""

from __future__ import annotations

import re
from pathlib import Path
from types import ModuleType

import pytest

import greentrain
import greentrain_datasets
import greentrain_harness
import greentrain_reports

# The collectives of torch that take any object pickle it.
UNSAFE = re.compile(
    r"\b(import|from) (pickle|dill|shelve|joblib|cloudpickle)\b|torch\.(save|load)\(|\b\w+_object(_list|s)?\("
)


@pytest.mark.parametrize("package", [greentrain, greentrain_datasets, greentrain_harness, greentrain_reports])
def test_no_module_pickles(package: ModuleType) -> None:
    (root,) = package.__path__
    files = sorted(Path(root).rglob("*.py"))
    assert files
    found = [
        f"{path}:{number}: {line.strip()}"
        for path in files
        for number, line in enumerate(path.read_text().splitlines(), start=1)
        if UNSAFE.search(line)
    ]
    assert found == []


@pytest.mark.parametrize(
    "line",
    ["import pickle", "from pickle import loads", "torch.save(model, path)", "dist.all_gather_object(found, own)"],
)
def test_the_search_finds_what_it_looks_for(line: str) -> None:
    assert UNSAFE.search(line)
