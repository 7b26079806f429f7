"""Guards the import arrows, the lightness of the command line, and what the wheel holds."""

from __future__ import annotations

import ast
import importlib
import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from setuptools import find_packages

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]
WINGS = {
    "greentrain": ROOT,
    "greentrain_harness": ROOT / "harness",
    "greentrain_datasets": ROOT / "datasets",
    "greentrain_reports": ROOT / "reports",
}
CORE = {
    "_checks", "actions", "batch_fits", "carbon", "choice", "cluster", "cluster_file", "device", "errors", "files",
    "fits", "ledger", "link_profile", "objective", "observation", "plan", "plugins", "point_model", "power", "probing",
    "profile", "profile_files", "reading", "share_fits", "sharing", "study", "summary", "tracking",
    "training_data", "transfer", "units", "version",
}  # fmt: skip
HEAVY = ("torch", "pandas", "sklearn", "scipy", "matplotlib")

# Layer -> layers of greentrain that it may import, besides the core and itself.
MAY_IMPORT: dict[str, set[str]] = {
    "core": set(),
    "parallel": set(),
    "cost": {"parallel"},
    "planners": {"cost", "parallel"},
    "explain": {"cost", "planners"},
    "simulator": {"cost", "parallel"},
    "rescore": {"simulator"},
    "workloads": {"datasets"},
    "runtime": {"cost", "parallel", "workloads", "datasets"},
    "harness": set(),
    "profilers": {"workloads", "harness"},
    "lab": {"harness", "datasets"},
    "bench": {
        "harness",
        "lab",
        "workloads",
        "planners",
        "cost",
        "simulator",
        "datasets",
        "reports",
        "runtime",
        "parallel",
    },
    "study": {
        "harness",
        "lab",
        "bench",
        "profilers",
        "workloads",
        "planners",
        "cost",
        "simulator",
        "datasets",
        "runtime",
        "parallel",
    },
    "datasets": set(),
    "reports": set(),
}
# Third-party packages at the top of a module.
THIRD_PARTY: dict[str, set[str]] = {
    "core": {"msgspec", "numpy", "tomli"},
    "parallel": {"msgspec", "numpy"},
    "cost": {"msgspec", "numpy"},
    "planners": {"msgspec", "numpy"},
    "explain": {"msgspec"},
    "simulator": {"msgspec", "numpy"},
    "rescore": {"msgspec"},
}


def _modules() -> Iterator[tuple[str, Path]]:
    for wing, folder in WINGS.items():
        for path in sorted((folder / wing).rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            yield ".".join(part for part in parts if part != "__init__"), path


MODULES = dict(_modules())


def _layer(module: str) -> str:
    """The layer of a module of this project."""
    wing, *rest = module.split(".")
    first = rest[0] if rest else ""
    if wing == "greentrain_harness":
        if first == "sweep":  # Runs the profilers over a control's operating points.
            return "profilers"
        return first if first in ("profilers", "lab", "bench", "study") else "harness"
    if wing != "greentrain":
        return wing.removeprefix("greentrain_")
    if not first:
        return "top"
    return "core" if first in CORE else first


def _imports(tree: ast.AST, *, top_only: bool) -> Iterator[str]:
    """Absolute names that a module imports; the body of functions and of TYPE_CHECKING is optional."""
    nodes: list[ast.AST] = [tree]
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            assert node.module is not None
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif top_only and isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        elif top_only and isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            nodes += node.orelse
        else:
            nodes += ast.iter_child_nodes(node)


def _targets(path: Path, *, top_only: bool) -> set[str]:
    return set(_imports(ast.parse(path.read_text(encoding="utf-8")), top_only=top_only))


def _is_ours(name: str) -> bool:
    return name.split(".")[0] in WINGS


@pytest.mark.parametrize("module", [name for name in MODULES if _layer(name) not in ("top", "cli")])
def test_arrows(module: str) -> None:
    layer = _layer(module)
    allowed = {"core", layer, *MAY_IMPORT[layer]}
    for target in _targets(MODULES[module], top_only=False):
        if not _is_ours(target):
            continue
        found = _layer(target)
        # `from greentrain import plan` names the module last.
        assert found in allowed, f"{module} ({layer}) imports {target} ({found}), allowed: {sorted(allowed)}"


@pytest.mark.parametrize("module", [name for name in MODULES if _layer(name) in THIRD_PARTY])
def test_light_layers_need_few_packages(module: str) -> None:
    allowed = THIRD_PARTY[_layer(module)]
    for target in _targets(MODULES[module], top_only=True):
        package = target.split(".")[0]
        assert _is_ours(target) or package in allowed or package in sys.stdlib_module_names, f"{module}: {target}"
    if module not in ("greentrain.batch_fits", "greentrain.fits", "greentrain.share_fits"):
        inner = {target.split(".")[0] for target in _targets(MODULES[module], top_only=False)}
        assert not inner & {"scipy", "sklearn"}, f"{module}: only the fit modules may fit"


def test_the_core_is_where_it_is_said_to_be() -> None:
    there = {name.split(".")[1] for name in MODULES if name.startswith("greentrain.")}
    assert there >= CORE
    layers = {_layer(name) for name in MODULES if name.startswith("greentrain.")}
    assert layers - {"core", "cli"} <= set(MAY_IMPORT)


def test_nothing_generic_shadows_other_packages() -> None:
    for folder in ("datasets", "harness", "reports"):
        assert not (ROOT / folder / "__init__.py").exists()


@pytest.mark.parametrize("module", [name for name in MODULES if not name.endswith("__main__")])
def test_exported_names_exist(module: str) -> None:
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    for node in tree.body:
        targets = node.targets if isinstance(node, ast.Assign) else []
        if any(isinstance(target, ast.Name) and target.id == "__all__" for target in targets):
            assert isinstance(node, ast.Assign)
            names = ast.literal_eval(node.value)
            assert len(set(names)) == len(names)
            missing = [name for name in names if not hasattr(importlib.import_module(module), name)]
            assert not missing, f"{module}.__all__ names {missing}"


def _loaded_after(code: str) -> list[str]:
    program = f"import sys, json\n{code}\nprint(json.dumps(sorted(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=50)
    return json.loads(result.stdout.splitlines()[-1])


@pytest.mark.parametrize(
    "code",
    [
        "import greentrain",
        "import greentrain.planners.exact, greentrain.simulator",
        "import greentrain.cli\ntry: greentrain.cli.main(['--help'])\nexcept SystemExit as end: assert end.code == 0",
    ],
)
def test_light_imports(code: str) -> None:
    loaded = set(_loaded_after(code))
    assert not loaded & set(HEAVY)


@pytest.mark.parametrize(
    "command",
    [
        "doctor",
        "meter",
        "measure",
        "models",
        "cluster",
        "schedule",
        "simulate",
        "train",
        "infer",
        "report",
        "lab",
        "study",
    ],
)
def test_help_of_every_command_is_light(command: str) -> None:
    ended = f"try: main(['{command}', '--help'])\nexcept SystemExit as end: assert end.code == 0"
    loaded = set(_loaded_after(f"from greentrain.cli import main\n{ended}"))
    assert not loaded & set(HEAVY)


def test_help_runs_as_a_module() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "greentrain.cli", "--help"], capture_output=True, text=True, timeout=50, check=True
    )
    assert "schedule" in result.stdout
    assert result.stderr == ""


def test_import_takes_a_sane_time() -> None:
    """The aim is 0.1 s; the best of three keeps a busy machine from failing."""
    code = "import time; a = time.perf_counter(); import greentrain; print(time.perf_counter() - a)"
    taken_s: list[float] = []
    until_s = time.monotonic() + 30
    while len(taken_s) < 3 and time.monotonic() < until_s:
        run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=50)
        taken_s.append(float(run.stdout))
    assert min(taken_s) < 0.2


def test_the_wheel_holds_exactly_the_four_packages() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    found = settings["packages"]["find"]
    packages = {
        name for folder in found["where"] for name in find_packages(str(ROOT / folder), include=found["include"])
    }
    assert {name.split(".")[0] for name in packages} == set(WINGS)
    # Every folder with modules is a package, so that none is forgotten in the wheel.
    assert {name if path.stem == "__init__" else name.rpartition(".")[0] for name, path in MODULES.items()} == packages


def test_the_wheel_holds_the_package_data() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    patterns: dict[str, list[str]] = settings["package-data"]
    for wing, folder in WINGS.items():
        held = {path for pattern in patterns[wing] for path in (folder / wing).glob(pattern)}
        assert folder / wing / "py.typed" in held
        data = {
            path for path in (folder / wing).rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc", ".md")
        }
        assert data <= held, f"not in the wheel: {sorted(str(path) for path in data - held)}"
    names = {path.name for pattern in patterns["greentrain_datasets"] for path in _data("greentrain_datasets", pattern)}
    assert "catalogue.toml" in names
    assert list(_data("greentrain_reports", "*.css"))


def _data(wing: str, pattern: str) -> Iterator[Path]:
    return (WINGS[wing] / wing).glob(pattern)


def test_commands_of_the_table_exist() -> None:
    text = (ROOT / "greentrain" / "cli" / "__init__.py").read_text(encoding="utf-8")
    modules = re.findall(r'\("(greentrain\.cli\.\w+)"', text)
    assert len(modules) >= 9
    for module in modules:
        assert hasattr(importlib.import_module(module), "command")
