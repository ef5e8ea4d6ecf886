"""Losses against values worked out by hand, in value and in gradient."""

from __future__ import annotations

import math

import pytest
import torch

from benchmarks.multitask_bert.model.losses import LOSSES

SIGMOID_2 = 1 / (1 + math.exp(-2))


@pytest.mark.parametrize(
    ("name", "outputs", "labels", "value", "gradient"),
    [
        (
            "cross-entropy",
            [[0.0, math.log(3.0)], [math.log(3.0), 0.0]],
            [1, 1],
            (math.log(4 / 3) + math.log(4)) / 2,
            [[0.125, -0.125], [0.375, -0.375]],
        ),
        (
            "bce",
            [2.0, 2.0],
            [1.0, 0.0],
            -(math.log(SIGMOID_2) + math.log(1 - SIGMOID_2)) / 2,
            [(SIGMOID_2 - 1) / 2, SIGMOID_2 / 2],
        ),
        ("mse", [1.0, 5.0], [2.0, 2.0], 5.0, [-1.0, 3.0]),
        ("cosine-mse", [0.5, -0.25], [5.0, 2.5], 0.15625, [-0.5, -0.25]),
        (
            "cosine-embedding",
            [0.25, 0.5, -0.5, 0.5],
            [5.0, 2.5, 1.0, 2.6],
            (0.75 + 0.5 + 0.0 + 0.5) / 4,
            [-0.25, 0.25, 0.0, -0.25],
        ),
    ],
)
def test_value_and_gradient(name, outputs, labels, value, gradient):
    outputs = torch.tensor(outputs, dtype=torch.float64, requires_grad=True)
    loss = LOSSES[name](outputs, torch.tensor(labels, dtype=torch.float64))
    assert loss.item() == pytest.approx(value)
    loss.backward()
    torch.testing.assert_close(outputs.grad, torch.tensor(gradient, dtype=torch.float64))
