"""Joules where people already look: TensorBoard, MLflow, Weights & Biases, OpenMetrics. Each loads on its first use.

    with open_tracker("tensorboard", "logs") as tracker:
        tracker.log_run(metrics)              # a finished run, as greentrain report --to does
        tracker.log({"energy_j": 1.5}, 10)    # or step by step, in a loop of your own

Names are grouped under ``greentrain/``. What was not recorded is not logged; nothing is ever logged as 0 for it.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from greentrain.errors import UnavailableError, UsageError
from greentrain.files import write_text
from greentrain.tracking import RunMetrics
from greentrain_harness.export import openmetrics_text

__all__ = ["TRACKERS", "Tracker", "open_tracker"]

_PREFIX = "greentrain/"


class Tracker:
    """One place that figures are sent to. Use as a context manager.

    A tracker writes to the network or to a folder only where its own package does.
    """

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Figures of one step; every name ends with its unit."""
        raise NotImplementedError

    def log_run(self, metrics: RunMetrics) -> None:
        """A finished run: what was chosen, every step, the totals."""
        raise NotImplementedError

    def close(self) -> None:
        """Send what is left; a second call does nothing."""

    def __enter__(self) -> Tracker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _TensorBoard(Tracker):
    """Event files by torch's writer; a folder per run."""

    def __init__(self, where: str) -> None:
        _module("tensorboard", extra="tensorboard")
        self._open: Any = _module("torch.utils.tensorboard", extra="tensorboard").SummaryWriter
        self._folder = Path(where)
        self._writer: Any = None

    def log(self, values: Mapping[str, float], step: int) -> None:
        if self._writer is None:
            self._writer = self._open(str(self._folder))
        for name, value in values.items():
            self._writer.add_scalar(_PREFIX + name, value, step)

    def log_run(self, metrics: RunMetrics) -> None:
        writer = self._open(str(self._folder / metrics.run))
        try:
            last = 0
            for last, values in metrics.steps:
                for name, value in values.items():
                    writer.add_scalar(f"{_PREFIX}step/{name}", value, last)
            for name, value in metrics.totals.items():
                writer.add_scalar(_PREFIX + name, value, last)
            for name, text in metrics.settings.items():
                writer.add_text(_PREFIX + name, text, last)
        finally:
            writer.close()

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


class _Mlflow(Tracker):
    """Runs of an MLflow server or folder; one MLflow run per run."""

    def __init__(self, where: str) -> None:
        self._mlflow: Any = _module("mlflow", extra="mlflow")
        self._client: Any = self._mlflow.MlflowClient(tracking_uri=where)
        self._own: str | None = None

    def log(self, values: Mapping[str, float], step: int) -> None:
        if self._own is None:
            self._own = self._start("greentrain", {})
        self._send(self._own, values, step, _PREFIX)

    def log_run(self, metrics: RunMetrics) -> None:
        run_id = self._start(metrics.run, {f"{_PREFIX}run_id": metrics.run_id})
        for name, text in metrics.settings.items():
            self._client.log_param(run_id, f"{_PREFIX}{name}", text)
        last = 0
        for last, values in metrics.steps:
            self._send(run_id, values, last, f"{_PREFIX}step/")
        self._send(run_id, metrics.totals, last, _PREFIX)
        self._client.set_terminated(run_id)

    def close(self) -> None:
        if self._own is not None:
            self._client.set_terminated(self._own)
            self._own = None

    def _start(self, name: str, tags: dict[str, str]) -> str:
        found = self._client.get_experiment_by_name("greentrain")
        experiment = found.experiment_id if found is not None else self._client.create_experiment("greentrain")
        return str(self._client.create_run(experiment, run_name=name, tags=tags).info.run_id)

    def _send(self, run_id: str, values: Mapping[str, float], step: int, prefix: str) -> None:
        metric: Any = importlib.import_module("mlflow.entities").Metric
        now_ms = int(importlib.import_module("time").time() * 1000)
        self._client.log_batch(
            run_id, metrics=[metric(prefix + name, value, now_ms, step) for name, value in values.items()]
        )


class _WeightsAndBiases(Tracker):
    """Runs of a Weights & Biases project; where they go is its own settings' matter (WANDB_MODE=offline)."""

    def __init__(self, where: str) -> None:
        self._wandb: Any = _module("wandb", extra="wandb")
        self._project = where
        self._run: Any = None

    def log(self, values: Mapping[str, float], step: int) -> None:
        if self._run is None:
            self._run = self._wandb.init(project=self._project)
        self._run.log({_PREFIX + name: value for name, value in values.items()}, step=step)

    def log_run(self, metrics: RunMetrics) -> None:
        # The same run again goes on where it was, instead of standing there twice.
        run = self._wandb.init(
            project=self._project, name=metrics.run, id=metrics.run_id, resume="allow", config=dict(metrics.settings),
            reinit="finish_previous",
        )  # fmt: skip
        for number, values in metrics.steps:
            run.log({f"{_PREFIX}step/{name}": value for name, value in values.items()}, step=number)
        for name, value in metrics.totals.items():
            run.summary[_PREFIX + name] = value
        run.finish()

    def close(self) -> None:
        if self._run is not None:
            self._run.finish()
            self._run = None


class _OpenMetrics(Tracker):
    """A text file in the OpenMetrics format, as a collector picks it up; no package is needed."""

    def __init__(self, where: str) -> None:
        self._path = Path(where)
        self._runs: list[RunMetrics] = []

    def log(self, values: Mapping[str, float], step: int) -> None:
        raise UsageError(
            "an OpenMetrics file holds finished runs.", hint="In a running loop use greentrain_harness.prometheus."
        )

    def log_run(self, metrics: RunMetrics) -> None:
        self._runs.append(metrics)

    def close(self) -> None:
        if self._runs:
            write_text(self._path, openmetrics_text(self._runs))
            self._runs = []


TRACKERS: dict[str, Callable[[str], Tracker]] = {
    "tensorboard": _TensorBoard,
    "mlflow": _Mlflow,
    "wandb": _WeightsAndBiases,
    "openmetrics": _OpenMetrics,
}


def open_tracker(kind: str, where: str) -> Tracker:
    """A tracker by name.

    Args:
        kind: One of ``TRACKERS``.
        where: Folder, address, project or file.

    Raises:
        UsageError: There is no such tracker.
        UnavailableError: Its package is not installed.
    """
    if kind not in TRACKERS:
        raise UsageError(f"unknown tracker {kind!r}.", hint=f"Known: {', '.join(TRACKERS)}.")
    return TRACKERS[kind](where)


def _module(name: str, *, extra: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = "tensorboard" if name == "torch.utils.tensorboard" else name
        # It may be there and lack something of its own.
        seen = f"{package} is not installed" if error.name == package else f"{package} cannot be used ({error})"
        raise UnavailableError(f"{seen}.", hint=f'Run: pip install "greentrain[{extra}]"') from error
