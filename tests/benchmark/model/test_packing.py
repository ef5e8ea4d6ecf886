"""Packed tokens and their attention against the padded computation, written out."""

from __future__ import annotations

import pytest
import torch

from benchmarks.multitask_bert.model import packing
from benchmarks.multitask_bert.model.packing import Packing

LENGTHS = (6, 1, 4, 0, 3)
RAGGED = torch.arange(6) < torch.tensor(LENGTHS)[:, None]
# Padding in the middle of a row and at its start.
HOLES = torch.tensor([[1, 1, 0, 1, 0, 1], [0, 1, 0, 0, 0, 0], [1, 0, 1, 1, 1, 0]])
MASKS = {"ragged": RAGGED, "holes": HOLES, "full": torch.ones(5, 6, dtype=torch.bool), "none": None}


@pytest.fixture(params=MASKS)
def mask(request):
    return MASKS[request.param]


def everywhere(mask):
    """The mask, with rows of six tokens where there is none."""
    return torch.ones(5, 6, dtype=torch.bool) if mask is None else mask.bool()


def test_packing_takes_the_real_tokens_in_order(mask):
    real = everywhere(mask)
    padded = torch.randn(*real.shape, 3)
    expected = [padded[b, c] for b, c in real.nonzero().tolist()]
    assert torch.equal(Packing(real.shape, mask).pack(padded), torch.stack(expected))


def test_padding_puts_them_back(mask):
    real = everywhere(mask)
    padded = torch.randn(*real.shape, 2, 3)
    made = Packing(real.shape, mask)
    assert torch.equal(made.pad(made.pack(padded)), padded * real[..., None, None])


def test_columns_are_those_of_the_padded_row(mask):
    real = everywhere(mask)
    columns = torch.randn(6, 3)
    made = Packing(real.shape, mask)
    expected = made.pack(columns.expand(len(real), 6, 3))
    assert torch.equal(made.pack_columns(columns), expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scores_per_row", [-1, 10**9], ids=["rows", "padded"])
def test_attention_of_each_row_to_itself(mask, scores_per_row, dtype, monkeypatch):
    monkeypatch.setattr(packing, "_SCORES_PER_ROW", scores_per_row)
    real = everywhere(mask)
    torch.manual_seed(0)
    packed = torch.randn(int(real.sum()), 3, 2, 4, dtype=dtype, requires_grad=True)
    weight = torch.randn(len(packed), 2, 4)
    attended = Packing(real.shape, mask).attend(packed, 0.0)
    assert attended.dtype == dtype
    (grad,) = torch.autograd.grad((attended * weight).sum(), packed)

    exact = packed.detach().double().requires_grad_()
    by_hand = []
    for row in exact.split(real.sum(1).tolist()):
        query, key, value = row.unbind(1)
        scores = torch.einsum("qhd,khd->hqk", query, key) / 2  # the root of 4
        by_hand.append(torch.einsum("hqk,khd->qhd", scores.softmax(-1), value))
    expected = torch.cat(by_hand)
    (their_grad,) = torch.autograd.grad((expected * weight).sum(), exact)
    close = {"rtol": 0, "atol": {torch.float64: 1e-12, torch.float32: 1e-5}.get(dtype, 0.05)}
    torch.testing.assert_close(attended.double(), expected, **close)
    torch.testing.assert_close(grad.double(), their_grad, **close)


@pytest.mark.parametrize("length", [2, 40])
def test_dropout_of_attention_keeps_the_mean(length):
    """Values of 1 and dropout's scale: every output is near 1, though none is 1."""
    real = torch.arange(length) < torch.tensor([length, length // 2])[:, None]
    torch.manual_seed(0)
    packed = torch.ones(int(real.sum()), 3, 300, 2)
    attended = Packing(real.shape, real).attend(packed, 0.25)
    assert abs(attended.mean().item() - 1) < 0.02
    assert attended.std() > 0.02


def test_rows_one_by_one_only_where_much_is_padding():
    for lengths, wasteful in (((60, 5, 5), True), ((60, 60, 59), False), ((60, 60, 60), False)):
        mask = torch.arange(60) < torch.tensor(lengths)[:, None]
        found = Packing(mask.shape, mask)._wasteful_lengths(12)
        assert found == (list(lengths) if wasteful else None)
