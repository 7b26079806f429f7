"""The command line as the lab's benchmarks use it: in a folder, an error with its last words."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from greentrain.errors import RunError

__all__ = ["greentrain", "lab_down", "measure_links", "measure_nodes"]

_LINK_PORT = 25201
_COMMAND = [sys.executable, "-m", "greentrain.cli"]


def greentrain(folder: Path, *arguments: str) -> None:
    """Run a command of greentrain in a folder.

    Raises:
        RunError: It failed.
    """
    done = subprocess.run([*_COMMAND, *arguments], cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        last = [line for line in done.stderr.splitlines() if line.startswith("Error: ")]
        reason = last[-1].removeprefix("Error: ") if last else done.stderr[-200:]
        raise RunError(f"greentrain {arguments[0]}: exit status {done.returncode}: {reason}")


def lab_down(folder: Path, name: str) -> None:
    """Take a lab down, or what is left of it."""
    subprocess.run([*_COMMAND, "lab", "down", "--name", name], cwd=folder, capture_output=True, check=False)


def measure_nodes(
    folder: Path, lab: str, models: Sequence[str], *, before_each: Callable[[], None] = lambda: None
) -> None:  # fmt: skip
    """Measure models on every node of a lab, once per folder; ``before_each`` is called before a node is measured.

    One node after the other: real boards do not take each other's caches and memory bandwidth away; nodes of one
    machine that measure side by side find large layers up to twice as slow.
    """
    for node, _ in _nodes(folder, lab):
        marks = {model: folder / f"{model}.{node}.measured" for model in models}
        lacking = [model for model, mark in marks.items() if not mark.exists()]
        if lacking:
            wanted = [word for model in lacking for word in ("--model", model)]
            before_each()
            inside = [*_COMMAND, "measure", "--device", "jetson", *wanted]
            greentrain(folder, "lab", "exec", "--name", lab, node, "--", *inside)
        for model in lacking:
            marks[model].touch()


def measure_links(folder: Path, lab: str, bandwidth: str) -> None:
    """Measure the links between all nodes of a lab, with joules and processor seconds per byte, once per bandwidth."""
    measured = folder / f"links-{bandwidth}.measured"
    if measured.exists():
        return
    for old in (*(folder / "profiles").glob("*.links.json"), *folder.glob("links-*.measured")):
        old.unlink()
    nodes = _nodes(folder, lab)
    for index, (server, address) in enumerate(nodes):
        inside = [*_COMMAND, "lab", "exec", "--name", lab, server, "--"]
        serving = subprocess.Popen(
            [*inside, *_COMMAND, "measure", "--link-serve", str(_LINK_PORT), "--id", server],
            cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        try:
            assert serving.stderr is not None
            serving.stderr.readline()  # It says so when it answers.
            # Every link once; the first node, which serves all others, asks the last one: it has a price, too.
            for client, _ in nodes[index + 1 :] or nodes[:1]:
                link = [*_COMMAND, "measure", "--link", f"{address}:{_LINK_PORT}", "--id", client]
                greentrain(folder, "lab", "exec", "--name", lab, client, "--", *link)
        finally:
            serving.terminate()
            serving.communicate()
    measured.touch()


def _nodes(folder: Path, lab: str) -> list[tuple[str, str]]:
    """Name and address of every node."""
    status = subprocess.run(
        [*_COMMAND, "lab", "status", "--name", lab, "--json"], cwd=folder, capture_output=True, check=True
    )
    return [(node["name"], node["address"]) for node in msgspec.json.decode(status.stdout)["labs"][0]["nodes"]]
