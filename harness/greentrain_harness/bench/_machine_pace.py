"""How fast the machine is at the moment: on shared ones it changes within a minute, by more than a prediction errs."""

from __future__ import annotations

import statistics
import time

import torch
from torch import nn

__all__ = ["machine_pace_s"]

_TRIALS_N = 7


def machine_pace_s() -> float:
    """Processor seconds of a fixed piece of work, about as a layer's: median of a few trials, on one thread."""
    threads_n = torch.get_num_threads()
    torch.set_num_threads(1)
    rows, matrix = torch.ones(8, 64, 32, 32), torch.ones(768, 768)
    layer = nn.Conv2d(64, 64, 3)
    trials_s: list[float] = []
    try:
        with torch.no_grad():
            for _ in range(_TRIALS_N):
                start_s = time.process_time()
                layer(rows)
                torch.matmul(matrix, matrix)
                trials_s.append(time.process_time() - start_s)
    finally:
        torch.set_num_threads(threads_n)
    return statistics.median(trials_s)
