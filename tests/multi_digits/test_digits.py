"""The overlaid images against the single digits that they are made of."""

import numpy as np
import torch
from sklearn import datasets

from benchmarks.multi_digits.digits import SHIFT, held_out_digits, training_digits


def _all_single():
    return (datasets.load_digits().images / 16).astype(np.float32)


def test_each_image_holds_a_digit_of_each_label():
    images, target = _all_single(), datasets.load_digits().target
    digits = training_digits(20, 0.0, seed=3)
    assert (digits.labels[0] != digits.labels[1]).all()
    for image, first, second in zip(digits.images[:, 0].numpy(), *digits.labels, strict=True):
        # Outside the other digit's square a single digit of the label's class shows unchanged.
        top = image[:SHIFT, :8]
        assert any(np.array_equal(top, single[:SHIFT]) for single in images[target == int(first)])
        bottom = image[8:, SHIFT:]
        assert any(
            np.array_equal(bottom, single[8 - SHIFT :]) for single in images[target == int(second)]
        )


def test_no_single_digit_is_trained_on_and_tested_on():
    corners = [
        {image[0, :8, :SHIFT].numpy().tobytes() for image in digits.images}
        for digits in (training_digits(3_000, 0.0, seed=5), held_out_digits(3_000))
    ]
    blank = torch.zeros(8, SHIFT).numpy().tobytes()
    common = (corners[0] & corners[1]) - {blank}
    assert len(common) < 0.05 * len(corners[1])  # left halves of different digits may be equal


def test_noise_exchanges_its_share_of_the_labels_and_nothing_else():
    clean, noisy = (training_digits(4_000, noise, seed=9) for noise in (0.0, 0.3))
    torch.testing.assert_close(clean.images, noisy.images, rtol=0, atol=0)
    changed = (clean.labels != noisy.labels).double().mean(1)  # one in ten is drawn as it was
    torch.testing.assert_close(changed, torch.full((2,), 0.27).double(), atol=0.03, rtol=0)
