"""Images of two overlaid digits, each of which is to be named."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

TASKS = ("top-left", "bottom-right")
NUM_CLASSES = 10
SHIFT = 4  # pixels between the two digits, to the right and downwards
SIDE = 8 + SHIFT  # of an image

_NUM_TRAIN = 1_200  # of the 1,797 single digits; the others are for the test images alone
_TEST_SEED = 71


@dataclass(frozen=True)
class Digits:
    """Images of two digits.

    Args:
        images: ``[N, 1, 12, 12]``, from 0 to 1.
        labels: of both tasks, ``[2, N]``.
    """

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.images)


def training_digits(count: int, noise: float, seed: int) -> Digits:
    """Draws images for training.

    Args:
        count: number of images.
        noise: share of the labels, of either task, that are replaced by a random class.
        seed: of everything that is drawn.

    Example:
        >>> digits = training_digits(5, 0.0, seed=1)
        >>> digits.images.shape, digits.labels.shape
        (torch.Size([5, 1, 12, 12]), torch.Size([2, 5]))
    """
    generator = np.random.default_rng(seed)
    digits = _overlaid(*_single()[0], count, generator)
    is_noisy = generator.random((2, count)) < noise
    drawn = torch.from_numpy(generator.integers(NUM_CLASSES, size=(2, count)))
    return Digits(digits.images, torch.where(torch.from_numpy(is_noisy), drawn, digits.labels))


@lru_cache
def held_out_digits(count: int = 4_000) -> Digits:
    """Draws the images that every network is tested on, of single digits that none has seen.

    Example:
        >>> torch.equal(held_out_digits(3).labels, held_out_digits(3).labels)
        True
    """
    return _overlaid(*_single()[1], count, np.random.default_rng(_TEST_SEED))


def _overlaid(
    images: np.ndarray, labels: np.ndarray, count: int, generator: np.random.Generator
) -> Digits:
    """Lays two random digits of different classes over each other, the brighter pixel in front."""
    first = generator.integers(len(images), size=count)
    second = generator.integers(len(images), size=count)
    while (same := labels[first] == labels[second]).any():
        second[same] = generator.integers(len(images), size=int(same.sum()))
    canvas = np.zeros((count, SIDE, SIDE), dtype=np.float32)
    canvas[:, :8, :8] = images[first]
    canvas[:, SHIFT:, SHIFT:] = np.maximum(canvas[:, SHIFT:, SHIFT:], images[second])
    found = np.stack([labels[first], labels[second]])
    return Digits(torch.from_numpy(canvas)[:, None], torch.from_numpy(found))


@lru_cache
def _single() -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """The single digits, divided into those for training and those for the test."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ValueError(
            "scikit-learn: must be installed, which ships the digits; "
            "pip install 'gradsurgery[benchmark]'"
        ) from error
    found = load_digits()
    images = (found.images / 16).astype(np.float32)
    labels = found.target.astype(np.int64)
    order = np.random.default_rng(0).permutation(len(images))
    train, test = order[:_NUM_TRAIN], order[_NUM_TRAIN:]
    return (images[train], labels[train]), (images[test], labels[test])
