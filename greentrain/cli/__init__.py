"""The command line: one file per command; parse, one call, files.

Sub-commands load lazily, so that ``greentrain --help`` needs neither torch nor pandas.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import importlib
import json
import os
import sys
from pathlib import Path
from typing import NoReturn, cast

import click

from greentrain.errors import GreentrainError
from greentrain.version import VERSION
from greentrain_harness.restore import restore_pending

__all__ = ["main", "run"]

# Command name -> (module, one line of help). The help stands here so that listing needs no import.
_COMMANDS: dict[str, tuple[str, str]] = {
    "doctor": ("greentrain.cli.doctor", "Sensors, clocks and permissions of this machine, and how to mend them."),
    "meter": ("greentrain.cli.meter", "Joules of a window or a command, with ± and source."),
    "measure": ("greentrain.cli.measure", "Measure this device (and a model on it) into profiles/."),
    "models": ("greentrain.cli.models", "Power and time models of profiles/: show them, check them."),
    "cluster": ("greentrain.cli.cluster", "Write or print cluster.toml."),
    "schedule": ("greentrain.cli.schedule", "Choose devices, shares and operating points by energy."),
    "simulate": ("greentrain.cli.simulate", "Timeline and joules of a plan before anything runs."),
    "train": ("greentrain.cli.train", "Run a plan; ledger, summary and model under runs/."),
    "finetune": ("greentrain.cli.finetune", "Fine-tune a pretrained model on your own texts, on your own devices."),
    "infer": ("greentrain.cli.infer", "Answer requests with a plan: latency and joules of each."),
    "report": ("greentrain.cli.report", "CSV and one self-contained HTML of a run."),
    "lab": ("greentrain.cli.lab", "An emulated edge cluster on this Linux machine (root)."),
    "study": ("greentrain.cli.study", "The energy demand of the parallelisms, swept and reported."),
}


# What writing to a redirected standard output can end with.
_OUTPUT_FAILS = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EBADF)


class _LazyGroup(click.Group):
    """A group whose commands are imported when they are called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        return cast("click.Command", importlib.import_module(_COMMANDS[cmd_name][0]).command)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        rows = [(name, text) for name, (_, text) in _COMMANDS.items()]
        with formatter.section("Commands"):
            formatter.write_dl(rows)


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(VERSION, prog_name="greentrain")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.pass_context
def _root(ctx: click.Context, debug: bool) -> None:
    """Train models on your own devices together, for the fewest joules."""
    ctx.obj = {"debug": debug}


def run() -> NoReturn:
    """The ``greentrain`` process: :func:`main`, and an end that no thread can spoil.

    A thread that gloo still holds aborts the process when it meets an interpreter that is being taken down, and a
    finished run would look like a crash. So where there may be one, the process ends at once after its last words. It
    does so too where they cannot be written: the interpreter would try again, and end with a status of its own.
    """
    try:
        main()
    except SystemExit as ended:
        code = 0 if ended.code is None else ended.code
    else:
        code = 0
    if not isinstance(code, int) or ("torch.distributed" not in sys.modules and _said()):
        sys.exit(code)
    atexit._run_exitfuncs()  # pyright: ignore[reportPrivateUsage] - temporary folders and the like
    _said()
    os._exit(code)


def _said() -> bool:
    """Write out what was said; whether all of it could be."""
    written = True
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:  # pyright: ignore[reportUnnecessaryComparison] - closed by the caller
                stream.flush()
        except (OSError, ValueError):
            written = False
    return written


def main(argv: list[str] | None = None) -> None:
    """Run the command line and exit: 0 ok, 2 usage, 3 infeasible, 4 hardware or permission, 5 run failed."""
    arguments = sys.argv[1:] if argv is None else argv
    debug, as_json = "--debug" in arguments, "--json" in arguments
    try:
        # A sweep that was killed may have left clocks and caps changed; without one this looks for a file only.
        for remark in restore_pending(Path(os.environ.get("GREENTRAIN_SYSROOT", "/"))):
            click.echo(remark, err=True)
        result: object = _root.main(args=arguments, prog_name="greentrain", standalone_mode=False)
        # A full disk shows here and not in Python's own flush at the end; also without any standard output.
        print(end="", flush=True)
    except GreentrainError as error:
        if debug:
            raise
        _exit(error.exit_code, error.message, error.hint, as_json=as_json)
    except (click.exceptions.Abort, KeyboardInterrupt):
        _exit(130, "interrupted.", "What was already written is kept.", as_json=as_json)
    except click.ClickException as error:
        # click words it with the command's usage; standard output is for the object.
        if as_json:
            _print_json(error.format_message(), None)
        error.show()
        sys.exit(error.exit_code)
    except BrokenPipeError:
        # Whoever read the output has seen enough.
        _drop_output()
        sys.exit(0)
    except Exception as error:
        if debug:
            raise
        if isinstance(error, OSError) and error.filename is None and error.errno in _OUTPUT_FAILS:
            _drop_output()
            reason = os.strerror(error.errno)
            _exit(5, f"standard output: cannot be written ({reason}).", "Send it elsewhere.", as_json=False)
        _exit(
            5, f"unexpected {type(error).__name__}: {error}.",
            "Run again as 'greentrain --debug …' to see where; please report it.", as_json=as_json,
        )  # fmt: skip
    sys.exit(result if isinstance(result, int) else 0)


def _exit(code: int, message: str, hint: str | None, *, as_json: bool) -> NoReturn:
    # The exit code must be right even where nothing can be written any more.
    with contextlib.suppress(OSError):
        if as_json:
            _print_json(message, hint)
        click.echo(f"Error: {message}", err=True)
        if hint is not None:
            click.echo(f"Hint: {hint}", err=True)
    sys.exit(code)


def _print_json(message: str, hint: str | None) -> None:
    click.echo(json.dumps({"error": message, "hint": hint}))


def _drop_output() -> None:
    """Let what is still buffered for standard output go nowhere, so that Python's last flush cannot fail."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
