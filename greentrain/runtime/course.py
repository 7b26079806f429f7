"""Course: what a run does besides its rounds: where it starts, the order of its samples, the end of an epoch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from greentrain.runtime.executor import Executor
    from greentrain.runtime.group import RunGroup

__all__ = ["Course"]


class Course:
    """The plain course: fresh weights, a new order of all samples in every epoch, nothing else.

    A run of several phases overrides what it needs. All ranks of a run must take the same course.
    """

    def begin(self, executor: Executor, group: RunGroup) -> None:
        """Called on every rank when all have met, before the first round."""

    def order(self, seed: int, epoch: int, samples_n: int) -> np.ndarray:
        """Indices of the training samples in the order of an epoch, the same on every rank."""
        return np.random.default_rng((seed, epoch)).permutation(samples_n)

    def forwarded(self, samples: np.ndarray) -> None:
        """Called after the forward pass of a micro-batch with the samples of this device's rows."""

    def epoch_ended(self, epoch: int, executor: Executor, group: RunGroup) -> None:
        """Called on every rank after the last round of an epoch, counted from 0."""
