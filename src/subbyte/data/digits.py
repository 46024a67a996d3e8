"""`digits`: 1,797 real handwritten digits of 8x8 pixels, inside the package, so that all runs without a download.

Source: E. Alpaydin, C. Kaynak, Optical Recognition of Handwritten Digits, UCI, 1998 (see NOTICE), as in scikit-learn.
"""

from __future__ import annotations

from importlib import resources

import numpy as np
import torch

from subbyte.data.dataset import Dataset

LEVELS = 16  # pixels are counts of 4x4 binary cells: 0..16
TEST_EVERY = 5
MEAN, STD = (0.3050,), (0.3759,)  # of the training part


def held_out(labels: np.ndarray) -> np.ndarray:
    """The split: of each class's images, in the file's order, every fifth (the 5th, 10th, ...) is for testing.

    Stratified and without a random number: 1,442 training and 355 test images.
    """
    mask = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        mask[np.flatnonzero(labels == label)[TEST_EVERY - 1 :: TEST_EVERY]] = True
    return mask


def load_digits() -> Dataset:
    """The data set, pixels 0..16 stretched to 0..255 as round(255 v / 16), so that an image file means the same."""
    with resources.files("subbyte.data").joinpath("digits.npz").open("rb") as stream, np.load(stream) as stored:
        images, labels = stored["images"], stored["labels"].astype(np.int64)
    x = torch.from_numpy(((images.astype(np.uint16) * 255 + LEVELS // 2) // LEVELS).astype(np.uint8)[:, None])
    y, test = torch.from_numpy(labels), torch.from_numpy(held_out(labels))
    return Dataset(
        name="digits",
        train_x=x[~test],
        train_y=y[~test],
        test_x=x[test],
        test_y=y[test],
        classes=tuple("0123456789"),
        mean=MEAN,
        std=STD,
        augment="shift",
    )
