"""Random samples with the shapes of the data sets, for profiling: their values change no times."""

from __future__ import annotations

import torch
from torch import Tensor

from greentrain.workloads.workload import Tensors
from greentrain_datasets.words import HALF_N, VOCABULARY_N, WORDS_N

__all__ = ["classified_words", "halves", "images", "next_words"]

_SPECIAL_N = 4


def _ids(n: int, tokens_n: int, seed: int = 0) -> Tensor:
    return torch.randint(_SPECIAL_N, VOCABULARY_N, (n, tokens_n), generator=torch.Generator().manual_seed(seed))


def _classes(n: int, classes_n: int) -> Tensor:
    return torch.randint(classes_n, (n,), generator=torch.Generator().manual_seed(1))


def images(n: int) -> tuple[Tensors, Tensor]:
    """Images (n, 3, 32, 32) in [0, 1] and classes 0-9."""
    return (torch.rand(n, 3, 32, 32, generator=torch.Generator().manual_seed(0)),), _classes(n, 10)


def classified_words(n: int) -> tuple[Tensors, Tensor]:
    """Word ids (n, 32) with full masks (n, 32) uint8 and classes 0-1."""
    return (_ids(n, WORDS_N), torch.ones(n, WORDS_N, dtype=torch.uint8)), _classes(n, 2)


def next_words(n: int) -> tuple[Tensors, Tensor]:
    """Word ids (n, 32), to each the word that follows (n, 32)."""
    return (_ids(n, WORDS_N),), _ids(n, WORDS_N, 1)


def halves(n: int) -> tuple[Tensors, Tensor]:
    """First half (n, 16) with mask, second half (n, 16), to each word of that the word that follows (n, 16)."""
    return (_ids(n, HALF_N), torch.ones(n, HALF_N, dtype=torch.uint8), _ids(n, HALF_N, 1)), _ids(n, HALF_N, 2)
