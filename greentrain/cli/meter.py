"""``greentrain meter``: joules of a window of time, or of a command."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
import time
from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec

from greentrain.cli._common import emit_json, json_option, say, sysroot_option
from greentrain.errors import GreentrainError, UnavailableError, UsageError
from greentrain.power import Source
from greentrain.reading import Meter, Span

if TYPE_CHECKING:
    from greentrain_harness.meters.replay import ReplayMeter
    from greentrain_harness.sampler import Sampler

__all__ = ["command"]

_DEFAULT_SECONDS = 5.0
_LIVE_S = 1.0


class _Result(msgspec.Struct, frozen=True, kw_only=True):
    """What ``--json`` prints.

    Attributes:
        energy_j: Joules of the roots together; null when nothing was measured.
        error_j: ± joules.
        duration_s: Seconds.
        mean_w: Watts.
        gap_s: Seconds without data, which the energy leaves out.
        source: ``measured`` or ``modelled``.
        scope: ``board`` or ``process``.
        channels: Joules by channel.
        meter: Name of the meter.
        throttled: Why clocks were held back, as seen once a second; null when the meter cannot tell.
        note: What a reader must know.
        command: The command that was measured; empty for a window.
        exit_code: How the command ended; null for a window.
    """

    energy_j: float | None
    error_j: float | None
    duration_s: float
    mean_w: float | None
    gap_s: float
    source: Source
    scope: str
    channels: dict[str, float | None]
    meter: str
    throttled: tuple[str, ...] | None
    note: str
    command: tuple[str, ...]
    exit_code: int | None


@click.command("meter", context_settings={"allow_interspersed_args": False})
@click.option(
    "--device",
    default="auto",
    show_default=True,
    help="auto, jetson, nvidia, cpu, wall, modelled, the name of a meter, or replay:FILE.",
)
@click.option("--wall-url", help="Address of the smart plug for --device wall: http://[USER:PASSWORD@]192.168.1.20.")
@click.option(
    "--wall-scale", type=float, default=1.0, help="Wall watts per rail watt, for the power supply; makes it modelled."
)
@click.option(
    "--wall-offset-w", type=float, default=0.0, help="Watts beside the rails: carrier board, fan; makes it modelled."
)
@click.option(
    "--seconds", type=click.FloatRange(min=0.0, min_open=True), default=None, help="Length of the window [5]."
)
@click.option("--record", type=click.Path(path_type=Path, dir_okay=False), help="Write the raw samples to this file.")
@click.option(
    "--prometheus", type=click.Path(path_type=Path, dir_okay=False), help="Write the joules to this textfile (*.prom)."
)
@json_option
@sysroot_option
@click.argument("words", nargs=-1, type=click.UNPROCESSED, metavar="[-- COMMAND ...]")
@click.pass_context
def command(
    ctx: click.Context,
    device: str,
    wall_url: str | None,
    wall_scale: float,
    wall_offset_w: float,
    seconds: float | None,
    record: Path | None,
    prometheus: Path | None,
    as_json: bool,
    sysroot: Path,
    words: tuple[str, ...],
) -> None:
    """Measure the joules of a few seconds, or of COMMAND from start to end.

    COMMAND's own exit code becomes the exit code.
    """
    from greentrain_harness.meters import open_named
    from greentrain_harness.meters._wall_side import at_wall
    from greentrain_harness.meters.replay import ReplayMeter
    from greentrain_harness.recording import Recorder

    if words and seconds is not None:
        raise UsageError("both --seconds and a COMMAND were given.", hint="Give one of them.")
    meter: Meter = open_named(_with_url(device, wall_url), sysroot=sysroot)
    if isinstance(meter, ReplayMeter):
        if words or seconds is not None or record is not None or (wall_scale, wall_offset_w) != (1.0, 0.0):
            raise UsageError(
                "a replay is told as it was recorded, with its own length.",
                hint="Leave out --seconds, --record, --wall-scale, --wall-offset-w and COMMAND.",
            )
        span, exit_code, throttled = _replayed(meter), None, None
    else:
        try:
            meter = at_wall(meter, scale=wall_scale, offset_w=wall_offset_w)
            meter = meter if record is None else Recorder(meter, record)
        except GreentrainError:
            meter.close()
            raise
        duration_s = None if words else seconds or _DEFAULT_SECONDS
        span, exit_code, throttled = _measured(meter, words, duration_s, quiet=as_json)
    result = _Result(
        energy_j=span.energy_j,
        error_j=span.error_j,
        duration_s=span.duration_s,
        mean_w=span.mean_w,
        gap_s=span.gap_s,
        source=span.source,
        scope=meter.scope,
        channels=span.channels_j,
        meter=span.meter,
        throttled=throttled,
        note=meter.note,
        command=words,
        exit_code=exit_code,
    )
    if prometheus is not None:
        from greentrain_harness.environment import device_id
        from greentrain_harness.export import write_prometheus

        write_prometheus(prometheus, span, meter.channels, device=device_id())
    if as_json:
        emit_json(result)
    else:
        _print(result, span)
    ctx.exit(exit_code or 0)


def _with_url(device: str, wall_url: str | None) -> str:
    if wall_url is None:
        return device
    if device not in ("wall", "auto"):
        raise UsageError(
            f"--wall-url does not go with --device {device}.", hint="Give --device wall, or leave one out."
        )
    return f"wall:{wall_url}"


def _measured(
    meter: Meter, words: tuple[str, ...], seconds: float | None, *, quiet: bool
) -> tuple[Span, int | None, tuple[str, ...] | None]:
    """The span, how the command ended, and why clocks were held back."""
    from greentrain_harness.sampler import Sampler

    with Sampler(meter) as sampler:
        start_s = sampler.now_s()
        with _live_line(sampler, start_s, shown=not quiet and sys.stderr.isatty()):
            if seconds is not None:
                say(f"Measuring {seconds:g} s with {meter.name} (source={meter.source}) …", quiet=quiet)
                time.sleep(seconds)
                exit_code = None
            else:
                exit_code = _run(words, to_stderr=quiet)
            stop_s = sampler.now_s()
        span = sampler.span(start_s, stop_s)
        # What a device counts is seen at the first look after it.
        sampler.look_at_clocks()
        return span, exit_code, sampler.throttled(start_s, sampler.now_s())


@contextlib.contextmanager
def _live_line(sampler: Sampler, start_s: float, *, shown: bool) -> Generator[None, None, None]:
    """Joules and watts so far on the terminal, rewritten every second while the block runs."""
    if not shown:
        yield
        return
    from greentrain.units import format_quantity

    done = threading.Event()

    def show() -> None:
        last_s = start_s
        while not done.wait(_LIVE_S):
            now_s = sampler.now_s()
            total, latest = sampler.span(start_s, now_s), sampler.span(last_s, now_s)
            text = f"{format_quantity(total.energy_j, 'energy')}, now {format_quantity(latest.mean_w, 'power')}"
            sys.stderr.write(f"\r\033[K  {text}, source={sampler.source}")
            sys.stderr.flush()
            last_s = now_s
        sys.stderr.write("\r\033[K")
        sys.stderr.flush()

    thread = threading.Thread(target=show, name="live-line", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join(timeout=2.0)


def _run(words: tuple[str, ...], *, to_stderr: bool) -> int:
    """Run the command; with ``--json`` its output goes to stderr, so that stdout holds one JSON object."""
    try:
        with subprocess.Popen(words, stdout=sys.stderr.fileno() if to_stderr else None) as process:
            try:
                code = process.wait()
            except KeyboardInterrupt:
                # The command got the same signal; its joules so far are still told.
                code = process.wait()
    except FileNotFoundError as error:
        raise UsageError(f"command {words[0]!r} was not found.", hint="Check its name and PATH.") from error
    except PermissionError as error:
        raise UnavailableError(f"command {words[0]!r} may not be run.", hint="Check its permissions.") from error
    return code if code >= 0 else 128 - code


def _replayed(meter: ReplayMeter) -> Span:
    from greentrain_harness.sampler import Sampler

    start_s, stop_s = meter.window_s
    with Sampler(meter, clock=lambda: stop_s, background=False, full_n=meter.left + 1) as sampler:
        while meter.left:
            sampler.sample_now()
        return sampler.span(start_s, stop_s)


def _print(result: _Result, span: Span) -> None:
    from greentrain.units import format_quantity
    from greentrain_harness.window import describe

    click.echo(describe(span))
    if len(result.channels) > 1:
        for name, energy_j in result.channels.items():
            click.echo(f"  {name}: {format_quantity(energy_j, 'energy', digits=4)}")
    if result.throttled:
        click.echo(f"  clocks were held back: {', '.join(result.throttled)}")
    click.echo(f"  {result.note}")
