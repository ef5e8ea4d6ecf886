"""MGDA's normalisers against the weights of gradients divided by hand."""

import pytest
import torch
from torch import nn

from gradsurgery import MGDA, mgda_weights

GRADS = torch.tensor([[3.0, 0.0, 1.0], [0.5, 2.0, 0.0], [-1.0, 0.2, 0.4]], dtype=torch.float64)
LOSSES = torch.tensor([2.0, 0.5, 3.0], dtype=torch.float64)


def update(way="backward", **options):
    weight = nn.Parameter(torch.zeros(3, dtype=torch.float64))
    optimizer = MGDA(torch.optim.SGD([weight], lr=1.0), **options)
    losses = [row @ weight + loss for row, loss in zip(GRADS, LOSSES, strict=True)]
    if way == "backward":
        optimizer.backward(losses)
    else:
        for task, loss in enumerate(losses):
            with optimizer.task(task) as block:
                block.backward(loss)
        optimizer.surgery()
    return weight.grad


@pytest.mark.parametrize("way", ["backward", "blocks"])
@pytest.mark.parametrize("normalizer", ["none", "l2", "loss", "loss+"])
def test_gradients_are_divided_first(normalizer, way):
    units = torch.ones(3, dtype=torch.float64)
    if normalizer in ("l2", "loss+"):
        units = units * GRADS.norm(dim=1)
    if "loss" in normalizer:
        units = units * LOSSES
    rows = GRADS / units[:, None]
    expected = mgda_weights(rows @ rows.T) @ rows
    torch.testing.assert_close(update(way, normalizer=normalizer), expected, rtol=1e-10, atol=0)


def test_a_gradient_of_zero_stops_all_unless_it_is_left_out():
    gram = torch.diag(torch.tensor([4.0, 0.0, 1.0], dtype=torch.float64))
    assert mgda_weights(gram).tolist() == [0.0, 1.0, 0.0]
    found = mgda_weights(gram, skip_zeros=True)
    torch.testing.assert_close(found, torch.tensor([0.2, 0.0, 0.8], dtype=torch.float64))


def test_another_normaliser_is_refused():
    with pytest.raises(ValueError, match="normalizer: must be one of"):
        update(normalizer="l1")
