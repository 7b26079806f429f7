"""``greentrain lab``: an emulated edge cluster on this Linux machine."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, BinaryIO

import click
import msgspec

from greentrain.cli._common import emit_json, json_option, say
from greentrain.errors import UsageError
from greentrain.units import format_quantity, parse_quantity

if TYPE_CHECKING:
    from greentrain_harness.lab import Lab

__all__ = ["command"]

_DEFAULT_QUOTAS = "60,40,25,15"
_DEFAULT_KINDS = ("jetson-orin-nano-8gb", "jetson-xavier-nx-8gb", "jetson-tx2-8gb", "jetson-nano-4gb")


class NodeStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One row of ``lab status``; ``power_w`` is None when the sensor driver is gone."""

    name: str
    address: str
    kind: str
    point: str
    quota_percent: float
    power_w: float | None
    sysroot: str
    processes: tuple[str, ...]


class LabStatus(msgspec.Struct, frozen=True, kw_only=True):
    """``lab status --json``."""

    name: str
    subnet: str
    bandwidth_bytes_per_s: float
    latency_s: float
    sensors_running: bool
    source: str
    nodes: tuple[NodeStatus, ...]


_name_option = click.option("--name", default="lab", show_default=True, help="Name of the lab.")


@click.group(name="lab")
def command() -> None:
    """An emulated edge cluster on this Linux machine (root).

    Nodes are network namespaces on shaped links with CPU quotas. Their sensor files follow the CPU time
    they really use, through the power curve of a catalogue board: a lab's joules are modelled.
    """


@command.command(name="up")
@_name_option
@click.option(
    "--quotas", default=_DEFAULT_QUOTAS, show_default=True, metavar="PERCENT,…", help="CPU quotas in % of one core."
)
@click.option("--kinds", metavar="KIND,…", help="Catalogue kind of each node; the defaults are four Jetsons.")
@click.option("--bandwidth", default="100Mbit", show_default=True, help="Rate of each node's link, each way.")
@click.option("--latency", default="0ms", show_default=True, help="Added one-way delay, where the kernel can.")
@json_option
def _up(name: str, quotas: str, kinds: str | None, bandwidth: str, latency: str, as_json: bool) -> None:
    """Set a lab up."""
    from greentrain_datasets.catalogue import catalogue_device
    from greentrain_harness import lab

    quotas_percent = _quotas(quotas)
    devices = [catalogue_device(kind, f"node{index}") for index, kind in enumerate(_kinds(kinds, len(quotas_percent)))]
    made = lab.up(
        name,
        devices=devices,
        quotas_percent=quotas_percent,
        bandwidth_bytes_per_s=parse_quantity(bandwidth, "bandwidth", where="--bandwidth", minimum=1000.0),
        latency_s=parse_quantity(latency, "time", where="--latency"),
    )
    machine_percent = 100 * (os.cpu_count() or 1)
    if sum(quotas_percent) > 0.75 * machine_percent:
        say(
            f"Remark: quotas sum to {sum(quotas_percent):g} % of this machine's {machine_percent} %; "
            "busy nodes will slow each other down."
        )
    _show(_status(made), as_json=as_json)
    say(f"Run something: greentrain lab exec --name {name} node0 -- greentrain doctor", quiet=as_json)


@command.command(name="exec")
@_name_option
@click.option("--all", "on_all", is_flag=True, help="Run on all nodes at once; the worst exit status counts.")
@click.option("--in-turn", is_flag=True, help="With --all: one node after the other, until one fails; for measuring.")
@click.argument("words", nargs=-1, required=True, metavar="(NODE | --all) -- COMMAND…")
def _exec(name: str, on_all: bool, in_turn: bool, words: tuple[str, ...]) -> int:
    """Run a command inside a node; its exit status is passed on."""
    from greentrain_harness import lab

    standing = lab.read_lab(name)
    if on_all:
        return _run_on_all(standing, words, in_turn=in_turn)
    if in_turn:
        raise UsageError("--in-turn goes with --all.", hint="Give both, or the name of one node.")
    node, *argv = words
    entering, variables = lab.exec_argv(standing, node, argv)
    # Becoming the command hands on signals and exit status by themselves.
    return os.execvpe(entering[0], entering, {**os.environ, **variables})


@command.command(name="status")
@click.option("--name", help="Only this lab.")
@json_option
def _show_status(name: str | None, as_json: bool) -> None:
    """Nodes, addresses, quotas, watts now and processes inside."""
    from greentrain_harness import lab

    names = lab.labs() if name is None else (name,)
    statuses = [_status(lab.read_lab(known)) for known in names]
    if as_json:
        emit_json({"labs": statuses})
        return
    for status in statuses:
        _show(status, as_json=False)
    if not statuses:
        say("No lab stands. Make one with: greentrain lab up")


@command.command(name="down")
@_name_option
@click.option("--all", "every", is_flag=True, help="All labs, also what crashed ones left behind.")
@json_option
def _down(name: str, every: bool, as_json: bool) -> None:
    """Take a lab down and remove everything it made, also after a crash."""
    from greentrain_harness import lab

    names = lab.names_in_use() if every else (name,)
    removed = [known for known in names if lab.down(known)]
    if as_json:
        emit_json({"removed": removed})
    elif removed:
        click.echo(f"Removed: {', '.join(removed)}.")
    else:
        click.echo("Nothing to remove." if every else f"Nothing to remove: no lab {name!r}.")


def _quotas(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise UsageError(
            f"--quotas is {text!r}, expected numbers separated by commas.", hint=f"Write: --quotas {_DEFAULT_QUOTAS}"
        ) from error


def _kinds(text: str | None, nodes_n: int) -> list[str]:
    if text is not None:
        return [part.strip() for part in text.split(",")]
    return [_DEFAULT_KINDS[index % len(_DEFAULT_KINDS)] for index in range(nodes_n)]


def _status(lab: Lab) -> LabStatus:
    from greentrain_harness.lab.cgroups import processes
    from greentrain_harness.lab.sensors import shown_w
    from greentrain_harness.lab.state import driver_runs

    running = driver_runs(lab)
    return LabStatus(
        name=lab.name,
        subnet=lab.subnet,
        bandwidth_bytes_per_s=lab.bandwidth_bytes_per_s,
        latency_s=lab.latency_s,
        sensors_running=running,
        source="modelled",
        nodes=tuple(
            NodeStatus(
                name=node.name,
                address=node.address,
                kind=node.kind,
                point=node.point,
                quota_percent=node.quota_percent,
                power_w=shown_w(Path(node.sysroot)) if running else None,
                sysroot=node.sysroot,
                processes=tuple(_describe(pid) for pid in processes(node.cgroup.folders)),
            )
            for node in lab.nodes
        ),
    )


def _describe(pid: int) -> str:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return str(pid)
    text = shlex.join(word.decode(errors="replace") for word in words if word)
    return f"{pid} {text[:60]}".strip()


def _show(status: LabStatus, *, as_json: bool) -> None:
    if as_json:
        emit_json(status)
        return
    delay = f", {format_quantity(status.latency_s, 'time')} delay" if status.latency_s else ""
    click.echo(
        f"lab {status.name}: {len(status.nodes)} nodes on {status.subnet}, "
        f"{format_quantity(status.bandwidth_bytes_per_s, 'bandwidth')} each way{delay}"
    )
    click.echo(f"  {'node':<8}{'address':<14}{'quota':>6}  {'watts':>8}  {'board (modelled watts)':<38}  processes")
    for node in status.nodes:
        watts = format_quantity(node.power_w, "power")
        board = f"{node.kind} at {node.point}"
        click.echo(
            f"  {node.name:<8}{node.address:<14}{node.quota_percent:>5g}%  {watts:>8}  {board:<38}  "
            f"{'; '.join(node.processes) or '-'}"
        )
    if not status.sensors_running:
        say(f"Remark: the sensor driver is gone. Run: greentrain lab down --name {status.name}, then up again.")


def _run_on_all(lab: Lab, argv: Sequence[str], *, in_turn: bool) -> int:
    """Run on all nodes, each line of output behind the node's name; gives the worst exit status.

    In turn the first node that fails is the last one: an interrupted command is not begun on the next.
    """
    from greentrain_harness.lab import exec_argv

    # All are looked up before the first starts.
    entries = [(node.name, *exec_argv(lab, node.name, argv)) for node in lab.nodes]
    started: list[subprocess.Popen[bytes]] = []
    readers: list[threading.Thread] = []

    def forward(number: int, frame: FrameType | None) -> None:
        for process in started:
            process.send_signal(number)

    # Ctrl-C reaches the commands by themselves: they share the terminal's foreground group.
    previous = {signal.SIGTERM: signal.signal(signal.SIGTERM, forward)}
    previous[signal.SIGINT] = signal.signal(signal.SIGINT, signal.SIG_IGN)
    lock = threading.Lock()
    try:
        for node, entering, variables in entries:
            process = subprocess.Popen(
                entering,
                env={**os.environ, **variables},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                preexec_fn=_default_interrupt,
            )
            started.append(process)
            for source, target in ((process.stdout, sys.stdout.buffer), (process.stderr, sys.stderr.buffer)):
                reader = threading.Thread(target=_prefix, args=(node, source, target, lock), daemon=True)
                reader.start()
                readers.append(reader)
            if in_turn and process.wait() != 0:
                break
        statuses = [process.wait() for process in started]
        for reader in readers:
            reader.join()
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    return max(status if status >= 0 else 128 - status for status in statuses)


def _default_interrupt() -> None:
    # An ignored signal stays ignored across exec.
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _prefix(node: str, source: BinaryIO, target: BinaryIO, lock: threading.Lock) -> None:
    with source:
        for line in source:
            with lock:
                target.write(f"{node}: ".encode() + line.removesuffix(b"\n") + b"\n")
                target.flush()
