"""Joules per sample and CO2e in transformers' Trainer.

callback = EnergyCallback(intensity=intensity(country="FRA", kg_per_kwh=None))
trainer = Trainer(..., callbacks=[callback])
callback.lead(trainer)      # so that TensorBoard, MLflow and W&B of the Trainer log the figures too
trainer.train()
print(callback.figures)
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from greentrain.carbon import Intensity
from greentrain.errors import UnavailableError
from greentrain_harness.callbacks.energy import EnergyFigures, TrainingEnergy, ranks_here

if TYPE_CHECKING:

    class _Base: ...
else:
    try:
        from transformers import TrainerCallback as _Base
    except ImportError:
        _Base = None

__all__ = ["EnergyCallback"]


class EnergyCallback(_Base or object):
    """Adds ``greentrain/energy_j`` (so far), ``…/energy_j_per_sample``, ``…/co2e_kg`` and others to every log.

    Attributes:
        figures: The figures of the last log, and of the whole training in the end; None before.

    Args:
        device: Meter, as of ``greentrain.measure``.
        intensity: Of the grid, for CO2e.
        sysroot: Prefix of /sys, /proc and /etc.

    Raises:
        UnavailableError: transformers is not installed.
    """

    def __init__(self, *, device: str = "auto", intensity: Intensity | None = None, sysroot: Path = Path("/")) -> None:
        if not _Base:
            raise UnavailableError("transformers is not installed.", hint='Run: pip install "greentrain[trainer]"')
        super().__init__()
        self.figures: EnergyFigures | None = None
        self._energy = TrainingEnergy(device=device, intensity=intensity, sysroot=sysroot)
        self._examples: int | None = None
        self._first_epoch = 0.0

    def lead(self, trainer: Any) -> None:
        """Come before the Trainer's own loggers, which otherwise have written a log before the figures are in it."""
        listed: list[Any] = trainer.callback_handler.callbacks
        if self in listed:
            listed.remove(self)
        listed.insert(0, self)

    def on_train_begin(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        """Begin."""
        self._examples = _examples_of_an_epoch(args, more.get("train_dataloader"))
        self._first_epoch = float(state.epoch or 0.0)
        self._energy.start()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **more: Any) -> None:
        """Add the figures so far."""
        if logs is None:
            return
        self._count(args, state)
        self.figures = self._energy.so_far()
        values = self.figures.metrics()
        logs.update(values)
        if state.log_history:
            state.log_history[-1].update(values)

    def on_train_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        """End."""
        self._count(args, state)
        self.figures = self._energy.stop()

    def _count(self, args: Any, state: Any) -> None:
        if self._examples is None or state.epoch is None:
            return
        # All ranks' samples; the meter sees those of this board.
        share = ranks_here(args.world_size) / args.world_size
        self._energy.set_samples(round((float(state.epoch) - self._first_epoch) * self._examples * share))


def _examples_of_an_epoch(args: Any, loader: Any) -> int | None:
    """Samples of one pass over the data; None for a stream without length."""
    try:
        if getattr(loader, "drop_last", False):
            return len(loader) * args.train_batch_size * args.world_size
        return len(loader.dataset)
    except (TypeError, AttributeError):
        return None
