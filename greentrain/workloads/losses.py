"""Losses that are a mean over rows, so that rows can be weighted and shared out among devices."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from greentrain.training_data import IGNORED

__all__ = ["next_token_loss"]


def next_token_loss(scores: Tensor, targets: Tensor) -> Tensor:
    """Mean over rows of the mean cross-entropy of a row's tokens.

    A mean over all tokens of a micro-batch would weigh rows by their length, and so depend on how rows are shared out.

    Args:
        scores: (n, t, tokens known).
        targets: (n, t); ``IGNORED`` where nothing is asked. A row without any target counts as 0.
    """
    losses = functional.cross_entropy(scores.flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="none")
    asked = (targets != IGNORED).sum(1).clamp(min=1)
    return (losses.view_as(targets).sum(1) / asked).mean()
