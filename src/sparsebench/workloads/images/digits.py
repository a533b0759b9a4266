"""digits: scikit-learn's 1,797 handwritten digits of 8x8 pixels, which come with the package. Seconds, no download.

The images are half of the UCI "Optical Recognition of Handwritten Digits" set (Alpaydin and Kaynak 1998).
"""

from __future__ import annotations

import functools
import hashlib

import numpy as np
import torch
from torch import nn

from sparsebench.errors import SparsebenchError
from sparsebench.workloads.images.classification import ImageClassification, Images, ImageSplits
from sparsebench.workloads.workload import Recipe

__all__ = ["DIGITS", "digits_network"]

VALIDATION, TEST = 360, 360


def digits_network() -> nn.Module:
    """Two convolutions and two linear layers, 49,176 weights in all.

    Returns:
        A network from [batch, 1, 8, 8] to [batch, 10].
    """
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 32, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(512, 76),
        nn.ReLU(),
        nn.Linear(76, 10),
    )


@functools.cache
def load_digits() -> ImageSplits:
    """The fixed split: 1,077 training, 360 validation and 360 test images, drawn by lot, once and for all.

    Raises:
        SparsebenchError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits as load
    except ImportError as error:
        raise SparsebenchError("the workload 'digits' needs scikit-learn: pip install 'sparsebench[bench]'") from error
    digits = load()
    pixels = torch.from_numpy(digits.images.astype(np.float32)).unsqueeze(1) / 16.0
    labels = torch.from_numpy(digits.target.astype(np.int64))
    # By hash and not by a random generator, whose numbers may change between releases: the split is fixed.
    order = torch.tensor(sorted(range(len(labels)), key=lambda index: hashlib.sha256(f"digits {index}".encode()).digest()))
    test, validation, training = order[:TEST], order[TEST : TEST + VALIDATION], order[TEST + VALIDATION :]
    mean, deviation = pixels[training].mean(), pixels[training].std()
    pixels = (pixels - mean) / deviation
    return ImageSplits(*(Images(pixels[part], labels[part]) for part in (training, validation, test)))


DIGITS = ImageClassification(
    name="digits",
    summary="1,797 handwritten digits of 8x8 pixels, a convolutional network of 49,176 weights; seconds a run",
    revision=1,
    recipe=Recipe(
        steps=1500,
        batch_size=16,
        optimizer="adamw",
        learning_rate=6e-3,
        learning_rate_schedule="trapezoid",
        auxiliary_lr_scale=5.0,
    ),
    load=load_digits,
    network=digits_network,
    max_shift=1,
)
