"""digits: 1797 handwritten digits of 8x8 pixels that ship with scikit-learn, as they are or as images of 32x32."""

from __future__ import annotations

import numpy as np

from greentrain.training_data import TrainingData

__all__ = ["load", "load_large"]

_GREY_LEVELS = 16.0
_ENLARGED = 4


def load() -> TrainingData:
    """Images (n, 1, 8, 8) float32 in [0, 1] and classes 0-9; 80 % to train, 20 % held out, stratified by class."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    pixels, targets = load_digits(return_X_y=True)
    images = (np.asarray(pixels).reshape(-1, 1, 8, 8) / _GREY_LEVELS).astype(np.float32)
    classes = np.asarray(targets).astype(np.int64)
    train, test = train_test_split(np.arange(len(classes)), test_size=0.2, random_state=0, stratify=classes)
    return TrainingData(
        name="digits",
        source="Optical Recognition of Handwritten Digits (E. Alpaydin, C. Kaynak, UCI, CC BY 4.0), from scikit-learn",
        train_inputs=(images[train],),
        train_targets=classes[train],
        test_inputs=(images[test],),
        test_targets=classes[test],
    )


def load_large() -> TrainingData:
    """The same digits as colour images (n, 3, 32, 32) float32: every pixel four by four times, in three channels."""
    small = load()
    return TrainingData(
        name="digits-32",
        source=small.source,
        train_inputs=(_enlarged(small.train_inputs[0]),),
        train_targets=small.train_targets,
        test_inputs=(_enlarged(small.test_inputs[0]),),
        test_targets=small.test_targets,
    )


def _enlarged(images: np.ndarray) -> np.ndarray:
    return images.repeat(3, axis=1).repeat(_ENLARGED, axis=2).repeat(_ENLARGED, axis=3)
