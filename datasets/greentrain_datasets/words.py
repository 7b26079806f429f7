"""The movie reviews as words, without any package's tokenizer: to classify, to go on with, to complete.

Words are numbered by how often the training sentences have them; rarer ones are unknown, which no model is asked for.
"""

from __future__ import annotations

import re
from collections import Counter

import numpy as np

from greentrain.training_data import IGNORED, TrainingData
from greentrain_datasets import reviews

__all__ = ["HALF_N", "VOCABULARY_N", "WORDS_N", "load_classes", "load_halves", "load_next"]

VOCABULARY_N = 2048
WORDS_N = 32
HALF_N = 16
_PADDING, _UNKNOWN, _BEGIN, _END = range(4)
_WORD = re.compile(r"[a-z0-9']+|[^\sa-z0-9']")


def load_classes() -> TrainingData:
    """Word ids (n, 32) int64 and masks (n, 32) uint8; class 1 where the mean human rating is positive."""
    train, test, train_classes, test_classes = reviews.split_snippets()
    vocabulary = _vocabulary(train)
    return TrainingData(
        name="review-words",
        source=reviews.SOURCE,
        train_inputs=_with_mask(train, vocabulary),
        train_targets=train_classes,
        test_inputs=_with_mask(test, vocabulary),
        test_targets=test_classes,
    )


def load_next() -> TrainingData:
    """Word ids (n, 32) int64, to each the word that follows (n, 32)."""
    train, test, _, _ = reviews.split_snippets()
    vocabulary = _vocabulary(train)
    train_inputs, train_targets = _next_words([_numbers(text, vocabulary) for text in train], WORDS_N)
    test_inputs, test_targets = _next_words([_numbers(text, vocabulary) for text in test], WORDS_N)
    return TrainingData(
        name="review-next-words",
        source=reviews.SOURCE,
        train_inputs=(train_inputs,),
        train_targets=train_targets,
        test_inputs=(test_inputs,),
        test_targets=test_targets,
    )


def load_halves() -> TrainingData:
    """First half (n, 16) with mask, second half (n, 16); to each word of the second the word that follows (n, 16)."""
    train, test, _, _ = reviews.split_snippets()
    vocabulary = _vocabulary(train)
    train_inputs, train_targets = _halves(train, vocabulary)
    test_inputs, test_targets = _halves(test, vocabulary)
    return TrainingData(
        name="review-halves",
        source=reviews.SOURCE,
        train_inputs=train_inputs,
        train_targets=train_targets,
        test_inputs=test_inputs,
        test_targets=test_targets,
    )


def _vocabulary(texts: list[str]) -> dict[str, int]:
    """Number of the most frequent words; equal counts go by the alphabet."""
    counts = Counter(word for text in texts for word in _WORD.findall(text.lower()))
    known = sorted(counts, key=lambda word: (-counts[word], word))[: VOCABULARY_N - _END - 1]
    return {word: number for number, word in enumerate(known, start=_END + 1)}


def _numbers(text: str, vocabulary: dict[str, int]) -> list[int]:
    return [vocabulary.get(word, _UNKNOWN) for word in _WORD.findall(text.lower())]


def _padded(rows: list[list[int]], length: int, padding: int) -> np.ndarray:
    array = np.full((len(rows), length), padding, dtype=np.int64)
    for row, numbers in enumerate(rows):
        array[row, : min(len(numbers), length)] = numbers[:length]
    return array


def _with_mask(texts: list[str], vocabulary: dict[str, int]) -> tuple[np.ndarray, np.ndarray]:
    ids = _padded([[_BEGIN, *_numbers(text, vocabulary)] for text in texts], WORDS_N, _PADDING)
    return ids, (ids != _PADDING).astype(np.uint8)


def _next_words(rows: list[list[int]], length: int) -> tuple[np.ndarray, np.ndarray]:
    inputs = _padded([[_BEGIN, *row] for row in rows], length, _PADDING)
    targets = _padded([[*row, _END] for row in rows], length, IGNORED)
    targets[targets == _UNKNOWN] = IGNORED
    return inputs, targets


def _halves(texts: list[str], vocabulary: dict[str, int]) -> tuple[tuple[np.ndarray, ...], np.ndarray]:
    rows = [_numbers(text, vocabulary) for text in texts]
    # At least one word, so that no mask is empty.
    cuts = [min(max(len(row) // 2, 1), HALF_N) for row in rows]
    first = _padded([row[:cut] for row, cut in zip(rows, cuts, strict=True)], HALF_N, _PADDING)
    second, targets = _next_words([row[cut:] for row, cut in zip(rows, cuts, strict=True)], HALF_N)
    return (first, (first != _PADDING).astype(np.uint8), second), targets
