"""The CPU's passes against the reference: sizes, types, threads, and numbers at the edges."""

import math
from itertools import pairwise

import pytest
import torch

from gradsurgery.kernels import blocked, reference

pytestmark = pytest.mark.usefixtures("poisoned_empty")

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
NUM_COLUMNS = [0, 1, 7, 1023, 1024, 1025, 5000]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Several blocks, and a last one that is not full, for single tiles and their rest."""
    monkeypatch.setattr(blocked, "_COLUMNS", 2048)
    monkeypatch.setattr(blocked, "_CONVERTED_COLUMNS", 2048)
    monkeypatch.setattr(blocked, "_WIDE_SUMS", 2048)
    monkeypatch.setattr(blocked, "_FEW_COLUMNS", 0)


@pytest.fixture(params=[1, 2, 5])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def make_weights(num_tasks):
    generator = torch.Generator().manual_seed(7)
    return torch.rand(num_tasks, generator=generator, dtype=torch.float64) + 0.5


def make_grads(num_tasks, num_columns, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num_tasks, num_columns, generator=generator).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("num_columns", NUM_COLUMNS)
@pytest.mark.parametrize("num_tasks", [1, 2, 3, 6, 7, 40])
def test_gram_matrix(num_tasks, num_columns, dtype):
    grads = make_grads(num_tasks, num_columns, dtype)
    found, expected = blocked.gram_matrix(grads), reference.gram_matrix(grads)
    assert found.dtype == torch.float64
    scale = expected.diagonal().sqrt()
    assert ((found - expected).abs() <= 2e-6 * scale * scale[:, None]).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("num_columns", NUM_COLUMNS)
@pytest.mark.parametrize("num_tasks", [1, 2, 3, 7, 40])
@pytest.mark.parametrize("where", ["new", "row", "last row", "apart"])
def test_combine(num_tasks, num_columns, dtype, where):
    grads = make_grads(num_tasks, num_columns, dtype)
    weights = make_weights(num_tasks)
    expected = reference.combine(weights, grads)
    out = {"new": None, "row": grads[0], "last row": grads[-1]}.get(
        where, torch.empty_like(grads[0])
    )
    found = blocked.combine(weights, grads, out)
    assert found is out or out is None
    torch.testing.assert_close(found, expected, rtol=2e-6, atol=2e-6 if dtype == DTYPES[0] else 0)


@pytest.mark.parametrize("num_tasks", [3, 40])
def test_any_number_of_threads_gives_the_same(threads, num_tasks):
    grads = make_grads(num_tasks, 50_000)
    found = [blocked.gram_matrix(grads) for _ in range(3)]
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[1], found[2])
    torch.testing.assert_close(found[0], reference.gram_matrix(grads), rtol=1e-5, atol=1e-2)
    weights = make_weights(num_tasks)
    expected = reference.combine(weights, grads)
    torch.testing.assert_close(blocked.combine(weights, grads), expected)
    torch.testing.assert_close(blocked.combine(weights, grads, grads[0]), expected)


@pytest.mark.parametrize("bounds", [[0, 9000], [0, 1, 4500, 4500, 9000], [7, 3000]])
def test_segments_are_passes_over_parts_of_the_columns(bounds):
    grads = make_grads(3, 9000)
    parts = [grads[:, start:end] for start, end in pairwise(bounds)]
    grams = blocked.gram_matrices(grads, bounds)
    assert torch.equal(grams, torch.stack([blocked.gram_matrix(part) for part in parts]))
    assert not torch.equal(grams, reference.gram_matrices(grads, bounds))  # which is float64
    weights = torch.rand(len(parts), 3) + 0.5
    out = torch.full((9000,), math.nan)
    assert blocked.combine_segments(weights, grads, bounds, out) is out
    for own, part, start, end in zip(weights, parts, bounds, bounds[1:], strict=False):
        assert torch.equal(out[start:end], blocked.combine(own, part))
    assert out[: bounds[0]].isnan().all()
    assert out[bounds[-1] :].isnan().all()


@pytest.mark.parametrize("num_tasks", [2, 9])
def test_rows_may_be_strided(num_tasks):
    whole = make_grads(num_tasks, 9000)
    part = whole[:, 1000:6001]
    every_other = whole[:, ::2]
    for grads in (part, every_other):
        torch.testing.assert_close(
            blocked.gram_matrix(grads), reference.gram_matrix(grads), rtol=1e-5, atol=1e-2
        )
        weights = torch.ones(num_tasks)
        torch.testing.assert_close(blocked.combine(weights, grads), grads.sum(0))
    assert blocked.combine(weights, part, part[0]) is not None
    assert torch.equal(whole[1:], make_grads(num_tasks, 9000)[1:])  # nothing else is written
    assert torch.equal(whole[0, 6001:], make_grads(num_tasks, 9000)[0, 6001:])


# Numbers at the edges: float32 has no room for their squares, or no digits for their sum.


@pytest.mark.parametrize("ratio", [1e-25, 1e-12, 1e12, 1e25])
def test_gradients_of_very_different_sizes(ratio):
    first = make_grads(1, 3000)[0]
    grads = torch.stack([first, -ratio * first])
    gram = blocked.gram_matrix(grads)
    cosine = gram[0, 1] / (gram[0, 0] * gram[1, 1]).sqrt()
    assert cosine.item() == pytest.approx(-1.0, abs=1e-6)
    torch.testing.assert_close(gram, reference.gram_matrix(grads), rtol=1e-5, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_inner_products_beyond_the_range_of_fp16(dtype):
    grads = torch.full((2, 3000), 200.0).to(dtype)
    assert blocked.gram_matrix(grads).tolist() == [[1.2e8] * 2] * 2


@pytest.mark.parametrize("scale", [1e-5, 1e-15, 1e18])
def test_no_bias_at_any_scale(scale):
    grads = make_grads(3, 3000)
    found = blocked.gram_matrix(scale * grads) / scale**2
    torch.testing.assert_close(found, reference.gram_matrix(grads), rtol=1e-5, atol=1e-2)


def test_a_gradient_that_is_all_zero():
    grads = make_grads(3, 3000)
    grads[1] = 0
    gram = blocked.gram_matrix(grads)
    assert gram[1].tolist() == [0.0, 0.0, 0.0]
    torch.testing.assert_close(gram, reference.gram_matrix(grads), rtol=1e-5, atol=1e-2)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite_stays_so(value):
    grads = make_grads(3, 3000)
    grads[1, 2500] = value
    gram = blocked.gram_matrix(grads)
    assert not gram[1].isfinite().any()
    assert not gram[:, 1].isfinite().any()
    assert gram[0, 2].isfinite()
    assert not blocked.combine(torch.ones(3), grads)[2500].isfinite()


@pytest.mark.parametrize("in_place", [True, False])
def test_a_weight_of_zero_hides_no_number_that_is_not_finite(in_place):
    grads = make_grads(3, 3000)
    grads[0, [10, 2900]] = math.nan
    found = blocked.combine(torch.tensor([0.0, 1.0, 1.0]), grads, grads[0] if in_place else None)
    assert found.isnan().nonzero().flatten().tolist() == [10, 2900]


def test_a_small_cosine_in_bf16():
    first, second = make_grads(2, 200_000, seed=3)
    second -= (second @ first) / (first @ first) * first
    second -= 0.002 * second.norm() / first.norm() * first
    grads = torch.stack([first, second]).bfloat16()
    exact = grads.double() @ grads.double().T
    torch.testing.assert_close(blocked.gram_matrix(grads)[0, 1], exact[0, 1], rtol=1e-3, atol=0)
