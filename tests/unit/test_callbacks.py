"""Energy of training that others drive, on an emulated board that draws 20 W all the time."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from greentrain.carbon import Intensity, co2e_kg
from greentrain_harness.callbacks.energy import EnergyFigures, TrainingEnergy
from greentrain_harness.meters.boards import board_named
from greentrain_harness.meters.trees import write_jetson_tree

GRID = Intensity(kg_per_kwh=0.056, place="FRA", year=2023, source="a table")


@pytest.fixture
def board(tmp_path: Path) -> Path:
    write_jetson_tree(tmp_path, board_named("agx-orin"), total_w=20.0)
    return tmp_path


def _work(seconds: float = 0.05) -> None:
    end_s = time.monotonic() + seconds
    while time.monotonic() < end_s:
        pass


def _is_20_w(figures: EnergyFigures | None, samples: int) -> None:
    assert figures is not None
    assert figures.energy_j is not None
    assert figures.power_w == pytest.approx(20, rel=0.15)
    assert figures.samples == samples
    assert figures.energy_j_per_sample == pytest.approx(figures.energy_j / samples)
    assert figures.co2e_kg == co2e_kg(figures.energy_j, GRID)
    assert figures.meter == "ina3221"


def test_a_loop_of_ones_own(board: Path) -> None:
    energy = TrainingEnergy(device="jetson", sysroot=board, intensity=GRID)
    energy.start()
    energy.start()
    _work()
    energy.add_samples(3)
    first = energy.so_far()
    _work()
    energy.add_samples(4)
    whole = energy.stop()
    assert first.energy_j is not None
    assert whole.energy_j is not None
    assert whole.energy_j > first.energy_j
    _is_20_w(whole, 7)
    assert set(whole.metrics()) == {
        f"greentrain/{name}"
        for name in ("energy_j", "error_j", "energy_j_per_sample", "error_j_per_sample", "power_w", "co2e_kg")
    }


def test_without_a_sensor_nothing_is_known_and_nothing_stops(tmp_path: Path) -> None:
    energy = TrainingEnergy(device="jetson", sysroot=tmp_path, intensity=GRID)
    energy.start()
    energy.add_samples(1)
    figures = energy.stop()
    assert (figures.energy_j, figures.energy_j_per_sample, figures.co2e_kg) == (None, None, None)
    assert figures.metrics() == {}
    assert figures.note


def test_another_rank_of_the_board_knows_nothing(board: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    energy = TrainingEnergy(device="jetson", sysroot=board)
    energy.start()
    assert energy.stop().energy_j is None


def test_transformers_logs_get_the_figures(board: Path) -> None:
    pytest.importorskip("transformers")
    from transformers.trainer_callback import CallbackHandler, TrainerCallback, TrainerControl, TrainerState

    from greentrain_harness.callbacks.transformers import EnergyCallback

    seen: list[dict[str, Any]] = []

    class Logger(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
            seen.append(dict(logs or {}))

    callback = EnergyCallback(device="jetson", sysroot=board, intensity=GRID)
    handler: Any = CallbackHandler([Logger(), callback], SimpleNamespace(), None, None, None)
    callback.lead(SimpleNamespace(callback_handler=handler))
    handler.train_dataloader = SimpleNamespace(dataset=range(50), drop_last=False)
    args: Any = SimpleNamespace(world_size=1, train_batch_size=8)
    state, control = TrainerState(), TrainerControl()
    handler.on_train_begin(args, state, control)
    _work()
    state.epoch = 0.5
    state.log_history.append({"loss": 1.0})
    handler.on_log(args, state, control, {"loss": 1.0})
    assert seen[0]["greentrain/energy_j"] > 0
    assert state.log_history[-1]["greentrain/energy_j"] == seen[0]["greentrain/energy_j"]
    state.epoch = 2.0
    handler.on_train_end(args, state, control)
    _is_20_w(callback.figures, 100)


def test_lightning_loggers_get_the_figures(board: Path) -> None:
    pytest.importorskip("lightning.pytorch", reason="Lightning is not installed")
    import torch

    from greentrain_harness.callbacks.lightning import EnergyCallback

    sent: list[dict[str, float]] = []
    logger = SimpleNamespace(log_metrics=lambda values, step: sent.append(values))  # pyright: ignore[reportUnknownLambdaType]
    trainer = SimpleNamespace(loggers=[logger], global_step=1, log_every_n_steps=1, num_devices=1)
    callback = EnergyCallback(device="jetson", sysroot=board, intensity=GRID)
    callback.on_train_start(trainer, None)
    _work()
    callback.on_train_batch_end(trainer, None, None, {"x": torch.zeros(8, 2)}, 0)
    callback.on_train_end(trainer, None)
    _is_20_w(callback.figures, 8)
    assert len(sent) == 2


def test_the_packages_load_only_when_asked_for() -> None:
    script = (
        "import sys, greentrain_harness.callbacks.energy, greentrain_harness.trackers, greentrain_harness.prometheus;"
        "print(sorted({'torch', 'transformers', 'lightning', 'mlflow', 'wandb', 'tensorboard', 'prometheus_client'}"
        " & set(sys.modules)))"
    )
    shown = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=50)
    assert shown.stdout.strip() == "[]"
