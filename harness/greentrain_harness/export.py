"""Joules for other programs: Prometheus text (for node_exporter's textfile collector), OpenMetrics of finished runs.

Metric names follow Prometheus's rules (base unit, ``_total`` for what only rises) and map one to one to
OpenTelemetry's: ``greentrain_energy_joules_total`` is ``greentrain.energy`` with the unit ``J``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from greentrain.files import write_text
from greentrain.reading import Channel, Span
from greentrain.tracking import RunMetrics

__all__ = ["openmetrics_text", "prometheus_text", "write_prometheus"]

_HELP = (
    ("greentrain_energy_joules_total", "counter", 'Energy by channel; the total is the sum of root="true".'),
    ("greentrain_energy_error_joules", "gauge", "Stated error of the total, plus or minus."),
    ("greentrain_window_seconds", "gauge", "Length of the measured window."),
    ("greentrain_gap_seconds", "gauge", "Seconds without data, which the energy leaves out."),
)  # fmt: skip

# Name, unit, kind, help and the name in RunMetrics.totals.
_RUN_METRICS = (
    ("greentrain_run_energy_joules_total", "joules", "counter", "Energy of all devices over the run.", "energy_j"),
    ("greentrain_run_energy_error_joules", "joules", "gauge", "Stated error of it, plus or minus.", "error_j"),
    ("greentrain_run_sample_energy_joules", "joules", "gauge", "Energy of one sample.", "energy_j_per_sample"),
    ("greentrain_run_co2e_kilograms", "kilograms", "gauge", "CO2e of the energy.", "co2e_kg"),
    ("greentrain_run_duration_seconds", "seconds", "gauge", "Seconds of training.", "duration_s"),
)  # fmt: skip


def prometheus_text(span: Span, channels: Iterable[Channel], *, device: str) -> str:
    """A span in the Prometheus text format; channels that gave nothing are left out, never 0.

    Args:
        span: The measured window.
        channels: The meter's channels.
        device: Id of the device.
    """
    common = {"device": device, "meter": span.meter, "source": span.source}
    energy = [
        _line(_HELP[0][0], {**common, "channel": channel.name, "root": str(channel.parent is None).lower()}, energy_j)
        for channel in channels
        if (energy_j := span.channels_j.get(channel.name)) is not None
    ]
    error = [] if span.error_j is None else [_line(_HELP[1][0], common, span.error_j)]
    bodies = (
        energy, error, [_line(_HELP[2][0], common, span.duration_s)], [_line(_HELP[3][0], common, span.gap_s)]
    )  # fmt: skip
    lines: list[str] = []
    for (name, kind, text), body in zip(_HELP, bodies, strict=True):
        if body:
            lines += [f"# HELP {name} {text}", f"# TYPE {name} {kind}", *body]
    return "\n".join(lines) + "\n"


def write_prometheus(path: Path, span: Span, channels: Iterable[Channel], *, device: str) -> None:
    """Write :func:`prometheus_text` so that a collector sees the old or the new file, never a part.

    Raises:
        UnavailableError: The folder may not be written to.
        RunError: The disk is full.
    """
    write_text(path, prometheus_text(span, channels, device=device))


def _line(name: str, labels: Mapping[str, str], value: float) -> str:
    shown = ",".join(f'{key}="{_escaped(text)}"' for key, text in labels.items())
    return f"{name}{{{shown}}} {value!r}"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def openmetrics_text(runs: Iterable[RunMetrics]) -> str:
    """Finished runs in the OpenMetrics text format; what was not recorded is left out, never 0."""
    listed = list(runs)
    lines: list[str] = []
    for name, unit, kind, text, key in _RUN_METRICS:
        body = [_line(name, {"run": run.run}, run.totals[key]) for run in listed if key in run.totals]
        if body:
            family = name.removesuffix("_total")
            lines += [f"# HELP {family} {text}", f"# TYPE {family} {kind}", f"# UNIT {family} {unit}", *body]
    family = "greentrain_device_energy_joules"
    body = [
        _line(f"{family}_total", {"run": run.run, "device": device, "source": run.source_by_device[device]}, energy_j)
        for run in listed
        for device, energy_j in run.energy_j_by_device.items()
    ]
    if body:
        lines += [f"# HELP {family} Energy of a device over the run.", f"# TYPE {family} counter",
                  f"# UNIT {family} joules", *body]  # fmt: skip
    return "\n".join([*lines, "# EOF"]) + "\n"
