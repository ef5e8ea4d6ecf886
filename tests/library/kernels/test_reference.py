"""The reference kernels against numpy in float64, over shapes, types and memory layouts."""

import math

import numpy as np
import pytest
import torch

from gradsurgery.kernels.reference import combine, gram_matrix

pytestmark = pytest.mark.usefixtures("poisoned_empty")

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
SHAPES = [(1, 1), (1, 7), (2, 3), (3, 1), (3, 0), (8, 129), (5, 4099), (40, 33), (3, 100_003)]
# Half a unit in the last place, relative, of one rounding to the type.
ROUNDING = {
    torch.float64: 2.0**-53,
    torch.float32: 2.0**-24,
    torch.bfloat16: 2.0**-8,
    torch.float16: 2.0**-11,
}


def gradients(num_tasks, num_params, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    grads = torch.randn(num_tasks, num_params, generator=generator, dtype=torch.float64)
    return grads.to(dtype)


def exact(tensor):
    return tensor.to(torch.float64).numpy()


def assert_gram(gram, grads):
    """Off by no more than float32 sums of single blocks allow, by Cauchy and Schwarz."""
    rows = exact(grads)
    lengths = np.linalg.norm(rows, axis=1)
    rounding = 2.0**-53 * 64 if grads.dtype == torch.float64 else 2.0**-24 * 4
    off = np.abs(gram.numpy() - rows @ rows.T)
    assert (off <= rounding * np.outer(lengths, lengths)).all()


def assert_combined(update, weights, grads):
    """Off by one rounding to the type, and those of T products and sums in the wider one."""
    rows, factors = exact(grads), exact(weights)
    expected = factors @ rows
    wide = ROUNDING[torch.float64 if grads.dtype == torch.float64 else torch.float32]
    sums = wide * (len(rows) + 2) * (np.abs(factors) @ np.abs(rows))
    smallest = torch.finfo(grads.dtype).smallest_normal
    allowed = ROUNDING[grads.dtype] * np.maximum(np.abs(expected), smallest) + sums
    assert (np.abs(exact(update) - expected) <= allowed * (1 + 1e-6)).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_gram_matrix(shape, dtype):
    grads = gradients(*shape, dtype)
    before = grads.clone()
    gram = gram_matrix(grads)
    assert gram.shape == (shape[0], shape[0])
    assert gram.dtype == torch.float64
    assert torch.equal(grads, before)
    assert_gram(gram, grads)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_combine(shape, dtype):
    grads = gradients(*shape, dtype)
    weights = torch.linspace(1.0, 2.5, shape[0], dtype=torch.float64)
    before = grads.clone(), weights.clone()
    update = combine(weights, grads)
    assert update.shape == (shape[1],)
    assert update.dtype == dtype
    assert torch.equal(grads, before[0])
    assert torch.equal(weights, before[1])
    assert_combined(update, weights, grads)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("row", [0, 1, 2, 3])
@pytest.mark.parametrize("num_params", [5, 50_001])
def test_combine_may_overwrite_any_row(row, dtype, num_params):
    grads = gradients(4, num_params, dtype)
    weights = torch.tensor([1.0, 2.5, 1.25, 3.0], dtype=torch.float64)
    expected = combine(weights, grads)
    others = [other for other in range(4) if other != row]
    untouched = grads[others].clone()
    update = combine(weights, grads, out=grads[row])
    assert update.data_ptr() == grads[row].data_ptr()
    assert torch.equal(grads[row], expected)
    assert torch.equal(grads[others], untouched)


@pytest.mark.parametrize("dtype", DTYPES)
def test_combine_overwrites_whatever_out_held(dtype):
    grads = gradients(3, 1001, dtype)
    weights = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    out = torch.full((1001,), math.nan, dtype=dtype)
    assert combine(weights, grads, out=out) is out
    assert torch.equal(out, combine(weights, grads))


def test_combine_into_a_strided_vector():
    grads = gradients(3, 40_000)
    weights = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    out = torch.full((40_000, 2), math.nan)
    combine(weights, grads, out=out[:, 1])
    assert torch.equal(out[:, 1], combine(weights, grads))
    assert out[:, 0].isnan().all()


LAYOUTS = {
    "every other column": lambda grads: torch.stack([grads, grads], -1).flatten(1)[:, ::2],
    "transposed": lambda grads: grads.T.contiguous().T,
    "part of wider rows": lambda grads: torch.nn.functional.pad(grads, (3, 5))[:, 3:-5],
    "every other row": lambda grads: grads.repeat_interleave(2, 0)[::2],
    "one row for all": lambda grads: grads[:1].expand_as(grads),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("num_params", [7, 40_003])
def test_non_contiguous_gradients(layout, dtype, num_params):
    grads = LAYOUTS[layout](gradients(3, num_params, dtype))
    assert not grads.is_contiguous()
    assert_gram(gram_matrix(grads), grads)
    weights = torch.tensor([1.0, 2.0, 1.5], dtype=torch.float64)
    assert_combined(combine(weights, grads), weights, grads)


def test_no_parameters():
    grads = torch.empty(3, 0)
    assert gram_matrix(grads).tolist() == [[0.0] * 3] * 3
    assert combine(torch.ones(3), grads).shape == (0,)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_weights_of_either_precision(dtype):
    grads = gradients(3, 11)
    weights = torch.tensor([1.0, 2.0, 1.5], dtype=dtype)
    assert_combined(combine(weights, grads), weights, grads)


def test_long_sums_lose_nothing():
    # A running float32 sum of four million squares is off by more than a hundredth.
    grads = torch.full((1, 1 << 22), 1.1).expand(2, -1)
    expected = (1 << 22) * float(grads[0, 0]) ** 2
    np.testing.assert_allclose(gram_matrix(grads), np.full((2, 2), expected), rtol=1e-6)


def test_small_cosines_survive_half_precision():
    first = torch.tensor([1.0, 0.0, 1.0, 0.0], dtype=torch.bfloat16).repeat(5000)
    second = torch.tensor([-(2.0**-9), 1.0, 0.0, 1.0], dtype=torch.bfloat16).repeat(5000)
    gram = gram_matrix(torch.stack([first, second]))
    assert gram[0, 1].item() == -5000 * 2.0**-9
    assert gram[0, 0].item() == 10_000


@pytest.mark.parametrize(
    ("dtype", "value"),
    [
        (torch.float16, 6e4),
        (torch.float16, 6e-8),
        (torch.float32, 1e30),
        (torch.float32, 1e-30),
        (torch.bfloat16, 1e30),
        (torch.bfloat16, 1e-30),
    ],
)
def test_gram_matrix_covers_the_whole_range_of_the_gradients(dtype, value):
    grads = torch.tensor([[value, value], [-value, value / 2]]).to(dtype)
    rows = exact(grads)
    np.testing.assert_allclose(gram_matrix(grads), rows @ rows.T, rtol=1e-6)


def test_combine_sums_in_a_wider_type():
    # In fp16 three times 30,000 is infinite, and in bf16 256 + 1 is 256.
    half = torch.tensor([[30_000.0], [-30_000.0]], dtype=torch.float16)
    assert combine(torch.tensor([3.0, 2.5]), half).tolist() == [15_000.0]
    brain = torch.tensor([[256.0], [1.0], [1.0]], dtype=torch.bfloat16)
    assert combine(torch.ones(3), brain).tolist() == [258.0]


def test_combine_takes_weights_beyond_the_type_of_the_gradients():
    half = torch.tensor([[1.0], [-1e-4]], dtype=torch.float16)
    weights = torch.tensor([1.0, 1e6], dtype=torch.float64)
    assert_combined(combine(weights, half), weights, half)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", DTYPES)
def test_non_finite_gradients_show_in_both(bad, dtype):
    grads = gradients(3, 50_000, dtype)
    grads[1, 49_999] = bad
    gram = gram_matrix(grads)
    assert not gram[1].isfinite().any()
    assert gram[[0, 2]][:, [0, 2]].isfinite().all()
    update = combine(torch.ones(3), grads)
    assert not update[49_999].isfinite()
    assert update[:49_999].isfinite().all()


def test_an_update_beyond_the_range_is_infinite():
    grads = torch.tensor([[6e4], [6e4]], dtype=torch.float16)
    assert combine(torch.ones(2), grads).tolist() == [math.inf]


@pytest.mark.parametrize("dtype", DTYPES)
def test_meta_tensors_pass_through(dtype):
    grads = torch.empty(3, 100_000, dtype=dtype, device="meta")
    gram = gram_matrix(grads)
    assert (gram.device.type, gram.shape) == ("meta", (3, 3))
    update = combine(torch.ones(3, device="meta"), grads, out=grads[0])
    assert (update.device.type, update.shape, update.dtype) == ("meta", (100_000,), dtype)
