"""Joules per sample and CO2e in Lightning's Trainer.

callback = EnergyCallback(intensity=intensity(country="FRA", kg_per_kwh=None))
Trainer(callbacks=[callback]).fit(model, loader)
print(callback.figures)
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from greentrain.carbon import Intensity
from greentrain.errors import UnavailableError
from greentrain_harness.callbacks.energy import EnergyFigures, TrainingEnergy

if TYPE_CHECKING:

    class _Base: ...
else:
    try:
        from lightning.pytorch import Callback as _Base
    except ImportError:
        try:
            from pytorch_lightning import Callback as _Base
        except ImportError:
            _Base = None

__all__ = ["EnergyCallback"]


class EnergyCallback(_Base or object):
    """Sends ``greentrain/energy_j`` (so far), ``…_per_sample``, ``…/co2e_kg`` and others to the Trainer's loggers.

    Attributes:
        figures: The figures of the last log, and of the whole training in the end; None before.

    Args:
        device: Meter, as of ``greentrain.measure``.
        intensity: Of the grid, for CO2e.
        sysroot: Prefix of /sys, /proc and /etc.

    Raises:
        UnavailableError: Lightning is not installed.
    """

    def __init__(self, *, device: str = "auto", intensity: Intensity | None = None, sysroot: Path = Path("/")) -> None:
        if not _Base:
            raise UnavailableError("Lightning is not installed.", hint='Run: pip install "greentrain[lightning]"')
        super().__init__()
        self.figures: EnergyFigures | None = None
        self._energy = TrainingEnergy(device=device, intensity=intensity, sysroot=sysroot)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Begin."""
        self._energy.start()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Count the batch, and log as often as the Trainer does."""
        size = _batch_size(batch)
        if size is not None:
            self._energy.add_samples(size * int(trainer.num_devices))
        every = int(trainer.log_every_n_steps or 0)
        if every and (batch_idx + 1) % every == 0:
            self.figures = self._energy.so_far()
            self._log(trainer)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """End."""
        self._finish(trainer)

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """End all the same: the meter must be closed."""
        self._finish(trainer)

    def _finish(self, trainer: Any) -> None:
        self.figures = self._energy.stop()
        self._log(trainer)

    def _log(self, trainer: Any) -> None:
        values = self.figures.metrics() if self.figures is not None else {}
        for logger in trainer.loggers if values else ():
            logger.log_metrics(values, step=int(trainer.global_step))


def _batch_size(batch: Any) -> int | None:
    """Length of the first tensor in a batch; None where there is none."""
    shape = getattr(batch, "shape", None)
    if shape is not None:
        return int(shape[0]) if len(shape) > 0 else None
    parts: Any = batch.values() if hasattr(batch, "values") else batch if isinstance(batch, (list, tuple)) else ()
    return next((size for part in parts if (size := _batch_size(part)) is not None), None)
