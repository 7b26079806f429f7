"""Accuracy of a trained model on held-out samples, in one process, after the energy window has closed."""

from __future__ import annotations

import numpy as np
import torch

from greentrain.runtime.worker import TrainedModel
from greentrain.training_data import IGNORED, TrainingData
from greentrain.workloads.workload import Workload, run_blocks

__all__ = ["accuracy", "baseline"]

# A language model's scores take megabytes a row.
_ROWS = 32


def accuracy(workload: Workload, seed: int, model: TrainedModel, data: TrainingData) -> float:
    """Share of held-out targets that the model finds most likely: classes of samples, or the next tokens of texts.

    Args:
        workload: Makes the blocks.
        seed: The run's seed; frozen weights come from it.
        model: The trained parameters.
        data: Its test part is used.
    """
    blocks = workload.build(seed)
    with torch.no_grad():
        for index, block in enumerate(blocks):
            for name, parameter in block.named_parameters():
                trained = model.parameters.get(f"{index}.{name}")
                if trained is not None:
                    parameter.copy_(trained)
        right = asked = 0
        for start in range(0, len(data.test_targets), _ROWS):
            inputs = tuple(torch.from_numpy(array[start : start + _ROWS]) for array in data.test_inputs)
            outputs = run_blocks([block.eval() for block in blocks], inputs)[0]
            targets = torch.from_numpy(data.test_targets[start : start + _ROWS])
            counts = targets != IGNORED
            right += int((outputs.argmax(dim=-1) == targets)[counts].sum())
            asked += int(counts.sum())
    return right / asked


def baseline(data: TrainingData) -> float:
    """Share of the most frequent class or token among the held-out targets: what guessing would reach."""
    _, counts = np.unique(data.test_targets[data.test_targets != IGNORED], return_counts=True)
    return float(counts.max() / counts.sum())
