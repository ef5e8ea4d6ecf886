"""The rows of the buffer against the gradients they were given, and the memory between the rows."""

import pytest
import torch

from gradsurgery.gradients.buffer import GradientBuffer
from gradsurgery.gradients.rows import Units
from gradsurgery.kernels import blocked, reference

pytestmark = pytest.mark.usefixtures("poisoned_empty")

DTYPES = [torch.float32, torch.float64, torch.bfloat16]
# Columns of two parameters: none to pad, just below what is padded, and above it.
SIZES = [(1, 0), (3, 5), (640, 639), (640, 640), (640, 641), (64, 1237), (5000, 9)]
EVERYTHING = Units()


def parameters_of(sizes, dtype=torch.float32):
    return [torch.nn.Parameter(torch.zeros(size, dtype=dtype)) for size in sizes]


def gradients_of(parameters, num_tasks, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [
        [(p, torch.randn(p.shape, generator=generator).to(p.dtype)) for p in parameters]
        for _ in range(num_tasks)
    ]


def laid_out(sizes, num_tasks, dtype=torch.float32):
    """A buffer that has rows for the gradients of that many tasks."""
    buffer, parameters = GradientBuffer(), parameters_of(sizes, dtype)
    capture(buffer, gradients_of(parameters, num_tasks))
    buffer.clear()
    capture(buffer, gradients_of(parameters, num_tasks)[:1])
    buffer.clear()
    return buffer, parameters


def capture(buffer, grads):
    for task, of_task in enumerate(grads):
        buffer.capture(task, [(p, grad.clone()) for p, grad in of_task], copy=False)


def memory_of(buffer):
    """All numbers that the rows take, the padding behind each included: ``[T, stride]``."""
    (rows,) = buffer._layout.row_sets
    return rows.matrix.as_strided(
        (rows.matrix.shape[0], rows.matrix.stride(0)), rows.matrix.stride()
    )


def padding_of(buffer):
    return memory_of(buffer)[:, buffer._layout.row_sets[0].num_columns :]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_rows_start_aligned_and_cost_what_was_promised(sizes, dtype):
    buffer, _ = laid_out(sizes, 3, dtype)
    num_columns = sum(sizes)
    needed = 3 * num_columns * dtype.itemsize
    assert needed <= buffer.num_bytes <= 1.05 * needed
    (rows,) = buffer._layout.row_sets
    assert rows.matrix.shape == (3, num_columns)
    assert rows.matrix.stride(1) == 1
    assert memory_of(buffer).numel() * dtype.itemsize == buffer.num_bytes
    if num_columns >= 1280:
        assert rows.matrix.stride(0) % 64 == 0
        begin = rows.matrix.data_ptr()
        assert all((row.data_ptr() - begin) % (64 * dtype.itemsize) == 0 for row in rows.matrix)
    else:
        assert rows.matrix.is_contiguous()


@pytest.mark.parametrize("kernels", [reference, blocked])
@pytest.mark.parametrize("sizes", [(640, 641), (5000, 9), (20_000, 3)], ids=str)
def test_padding_is_neither_read_nor_written(sizes, kernels):
    buffer, parameters = laid_out(sizes, 2)
    for step, num_tasks in enumerate((2, 4, 3)):  # at the second the rows grow
        grads = gradients_of(parameters, num_tasks, seed=step)
        capture(buffer, grads)
        assert padding_of(buffer).shape[1] > 0
        assert padding_of(buffer).isnan().all()  # as it was handed out, poisoned
        flat = torch.stack([torch.cat([grad for _, grad in of_task]) for of_task in grads])
        buffer.settle()
        (gram,) = buffer.grams(kernels.gram_matrices, EVERYTHING, alone=False)
        torch.testing.assert_close(gram, reference.gram_matrix(flat), rtol=1e-5, atol=1e-3)
        weights = torch.arange(1.0, num_tasks + 1, dtype=gram.dtype)
        combined = buffer.combine(kernels.combine_segments, EVERYTHING, weights[None])
        update = torch.cat([combined[p] for p in parameters])
        torch.testing.assert_close(update, reference.combine(weights, flat), rtol=1e-5, atol=1e-5)
        assert padding_of(buffer).isnan().all()
        buffer.clear()


def test_a_row_that_grows_keeps_what_it_holds():
    buffer, parameters = laid_out((640, 641), 2)
    grads = gradients_of(parameters, 5)
    capture(buffer, grads)
    for parameter in parameters:
        kept = buffer.grads_of(parameter)
        for task, of_task in enumerate(grads):
            assert torch.equal(kept[task], dict(of_task)[parameter])


def test_a_restored_buffer_lays_its_rows_out_alike():
    buffer, parameters = laid_out((640, 641), 3)
    capture(buffer, gradients_of(parameters, 3))
    again = GradientBuffer()
    again.restore(*buffer.layout())
    capture(again, gradients_of(parameters, 3))
    assert again.num_bytes == buffer.num_bytes
    assert torch.equal(again._layout.row_sets[0].matrix, buffer._layout.row_sets[0].matrix)
    assert again._layout.row_sets[0].matrix.stride() == buffer._layout.row_sets[0].matrix.stride()


def combined(buffer, parameters, num_tasks=2, seed=0):
    """The gradients that a step of equal weights hands out."""
    capture(buffer, gradients_of(parameters, num_tasks, seed))
    buffer.settle()
    weights = torch.ones(1, num_tasks, dtype=torch.float64)
    found = buffer.combine(reference.combine_segments, EVERYTHING, weights)
    buffer.clear()
    return found


def test_nobody_who_holds_costs_nothing():
    buffer, parameters = laid_out((640, 641), 2)
    places = {tuple(g.data_ptr() for g in combined(buffer, parameters).values()) for _ in range(5)}
    assert len(places) == 1
    assert buffer._layout.row_sets[0].matrix[0].data_ptr() == min(*places)


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_handed_out_is_kept_and_from_then_on_copied(dtype):
    buffer, parameters = laid_out((640, 641), 2, dtype)
    first, second = parameters
    kept = [combined(buffer, parameters)[first]]
    was = [kept[0].clone()]
    for step in range(1, 4):
        place = buffer._layout.row_sets[0].matrix.data_ptr()
        found = combined(buffer, parameters, seed=step)
        moved = buffer._layout.row_sets[0].matrix.data_ptr() != place
        assert moved == (step == 1)  # the rows that the first one lies in are left to it
        assert buffer.holds(found[second])
        assert not buffer.holds(found[first])
        kept.append(found[first])
        was.append(found[first].clone())
        del found  # nobody keeps the second's
    for grad, number in zip(kept, was, strict=True):
        assert torch.equal(grad, number)
        assert grad.untyped_storage().nbytes() == grad.numel() * dtype.itemsize


def test_rows_keep_pairs_of_numbers_together():
    odd = torch.nn.Parameter(torch.zeros(3))
    pairs = torch.nn.Parameter(torch.zeros(5, dtype=torch.complex64))
    buffer = GradientBuffer()
    for step in range(3):
        grads = [
            [
                (odd, torch.full((3,), 1.0 + task)),
                (pairs, torch.full((5,), (1 + 2j) * (task + step))),
            ]
            for task in range(3)
        ]
        capture(buffer, grads)
        buffer.settle()
        (gram,) = buffer.grams(reference.gram_matrices, EVERYTHING, alone=False)
        flat = torch.stack(
            [torch.cat([a, torch.view_as_real(b).flatten()]) for (_, a), (_, b) in grads]
        )
        torch.testing.assert_close(gram, reference.gram_matrix(flat))
        for task in range(3):
            slot = buffer.slots[task]
            assert torch.equal(buffer.hand_out(pairs, slot), grads[task][1][1])
        buffer.clear()
    (rows,) = buffer._layout.row_sets
    assert all(rows.view(pairs, slot).data_ptr() % 8 == 0 for slot in range(3))
