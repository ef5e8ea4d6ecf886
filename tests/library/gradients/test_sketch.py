"""Sketches of vectors against the vectors: exact where nothing is lost, else off as derived."""

import pytest
import torch

from gradsurgery import Sketch
from gradsurgery.gradients import sketch as sketches
from gradsurgery.gradients.rows import Units
from gradsurgery.gradients.sketch import Projection
from gradsurgery.gradients.sketch_buffer import SketchBuffer
from gradsurgery.kernels import reference

CPU = torch.device("cpu")


def projected(vector, size, seed=0, cuts=()):
    """The sketch of a vector that is given in pieces."""
    projection = Projection(size, len(vector), seed, CPU, torch.float64)
    pieces, start = [], 0
    for end in (*cuts, len(vector)):
        pieces.append((start, vector[start:end]))
        start = end
    return projection.add(pieces, torch.zeros(projection.size, dtype=torch.float64))


def whole_numbers(number, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-9, 10, (number,), generator=generator).double()


@pytest.mark.parametrize("columns", [1, 5, 700, 1000])
def test_up_to_k_columns_lose_nothing(columns):
    one, other = whole_numbers(columns, 1), whole_numbers(columns, 2)
    here, there = projected(one, 1000), projected(other, 1000)
    assert here @ there == one @ other
    assert here @ here == one @ one


@pytest.mark.parametrize("stretch", [64, 160, 1 << 20])
def test_a_sketch_is_one_matrix_with_a_sign_in_each_column(monkeypatch, stretch):
    monkeypatch.setattr(sketches, "_COLUMNS", stretch)
    size, columns = 32, 500
    matrix = torch.stack([projected(unit, size) for unit in torch.eye(columns).double()], 1)
    assert torch.equal(matrix.abs().sum(0), torch.ones(columns).double())
    assert set(matrix.unique().tolist()) == {-1, 0, 1}
    vector = whole_numbers(columns, 3)
    for cuts in ((), (1,), (33, 34, 200), (160, 320)):
        assert torch.equal(projected(vector, size, cuts=cuts), matrix @ vector)
    assert not torch.equal(projected(vector, size, seed=1), matrix @ vector)


@pytest.mark.parametrize("stretch", [512, 1 << 20])
@pytest.mark.parametrize("cosine", [0.0, -0.5, 0.9])
def test_errors_are_those_that_were_derived(monkeypatch, stretch, cosine):
    """Over 400 seeds the mean error is zero within four of its standard deviations, and the
    variance is what the page of mathematics says within a quarter."""
    monkeypatch.setattr(sketches, "_COLUMNS", stretch)
    size, columns, num_seeds = 128, 4000, 400
    generator = torch.Generator().manual_seed(5)
    one, other = torch.linalg.qr(torch.randn(columns, 2, generator=generator).double()).Q.T
    other = cosine * one + (1 - cosine**2) ** 0.5 * other
    pairs = [(projected(one, size, s), projected(other, size, s)) for s in range(num_seeds)]
    products = torch.stack([a @ b for a, b in pairs])
    cosines = torch.stack([a @ b / (a.norm() * b.norm()) for a, b in pairs])
    variance = (1 + cosine**2) / size
    assert (products.mean() - cosine).abs() <= 4 * (variance / num_seeds) ** 0.5
    assert 0.75 <= products.var() / variance <= 1.25
    assert 0.75 <= cosines.var() / ((1 - cosine**2) ** 2 / size) <= 1.25


@pytest.mark.parametrize("repeated", [False, True], ids=["periodic", "alike-everywhere"])
def test_regular_gradients_have_no_larger_errors_than_the_bound(monkeypatch, repeated):
    """Vectors that repeat in step with the stretches, where signs are not independent."""
    monkeypatch.setattr(sketches, "_COLUMNS", 256)
    size, num_seeds = 64, 400
    part = torch.ones(256).double() if repeated else whole_numbers(256, 1)
    one = part.repeat(16)
    other = part.roll(1).repeat(16) * torch.arange(1.0, 4097.0).cos()
    scale = one.norm() * other.norm()
    found = torch.stack(
        [projected(one, size, s) @ projected(other, size, s) for s in range(num_seeds)]
    )
    errors = (found - one @ other) / scale
    assert errors.mean().abs() <= 4 * errors.std() / num_seeds**0.5
    assert errors.square().mean() <= 8 / size


def buffer_for(parameters, size=1 << 16, alone=False):
    return SketchBuffer(lambda: iter(parameters), Sketch(size), lambda: (0, alone))


def grads_of(parameters, seed):
    generator = torch.Generator().manual_seed(seed)
    return [
        (p, torch.randint(-9, 10, p.shape, generator=generator).to(p.dtype)) for p in parameters
    ]


def gram_of(buffer):
    return buffer.grams(reference.gram_matrices, Units(), alone=False)[0]


def flat_of(grads, kept):
    return torch.cat([g.reshape(-1) for p, g in grads if any(p is k for k in kept)]).double()


def test_what_one_task_alone_reached_is_not_in_the_gram_matrix():
    """Also where a parameter waited for its second task, and whichever came first."""
    parameters = [torch.nn.Parameter(torch.zeros(shape)) for shape in [(3, 4), (5,), (2, 2), (7,)]]
    trunk, a_head, b_head, late = parameters
    buffer = buffer_for(parameters)
    for step in range(3):
        of_a, of_b = (grads_of(parameters, 2 * step + task) for task in range(2))
        of_a = [pair for pair in of_a if pair[0] is not b_head]
        of_b = [pair for pair in of_b if pair[0] is not a_head and (step or pair[0] is not late)]
        buffer.capture(0, of_a[1:], copy=True)
        buffer.capture(1, of_b, copy=True)
        buffer.capture(0, of_a[:1], copy=True)  # a second block
        kept = [trunk, late] if step else [trunk]
        rows = torch.stack([flat_of(grads, kept) for grads in (of_a, of_b)])
        assert torch.equal(gram_of(buffer), rows @ rows.T)
        assert {id(p) for p in buffer.shared()} == {id(p) for p in kept}
        buffer.clear()


@pytest.mark.parametrize("size", [4, 8, 1 << 16])
def test_large_tensors_wait_as_sketches_and_come_to_the_same(size):
    parameters = [torch.nn.Parameter(torch.zeros(shape)) for shape in [(3, 4), (5,), (6, 5)]]
    grams = []
    for known in (False, True):
        buffer = buffer_for(parameters, size, alone=known)
        for task in range(3):
            for half in range(2):
                buffer.capture(task, grads_of(parameters, 2 * task + half), copy=True)
        grams.append(gram_of(buffer))
        assert buffer.num_bytes <= 3 * min(size, 47) * 4
    assert torch.equal(*grams)


def test_one_buffer_moved_into_another_is_all_in_one():
    parameters = [torch.nn.Parameter(torch.zeros(shape)) for shape in [(3, 4), (5,), (6,)]]
    first, both = buffer_for(parameters), buffer_for(parameters)
    tasks_of_parts = (
        ((1, parameters[:2]), (0, parameters[1:])),
        ((0, parameters[:2]), (2, parameters)),
    )
    parts = [first]
    for number, part in enumerate(tasks_of_parts):
        if number:
            parts.append(first.empty())
        for task, reached in part:
            for buffer in (parts[number], both):
                buffer.capture(task, grads_of(reached, task + 10 * number), copy=True)
    parts[1].move_into(first)
    assert first.slots == both.slots
    assert torch.equal(gram_of(first), gram_of(both))
    assert first.shared() == both.shared()


def test_memory_order_of_a_gradient_makes_no_difference():
    parameter = torch.nn.Parameter(torch.zeros(4, 3, 5, 5).to(memory_format=torch.channels_last))
    grad = torch.randint(-9, 10, parameter.shape).float()
    buffer = buffer_for([parameter], size=64, alone=True)
    buffer.capture(0, [(parameter, grad)], copy=True)
    buffer.capture(1, [(parameter, grad.to(memory_format=torch.channels_last))], copy=True)
    gram = gram_of(buffer)
    assert (gram == gram[0, 0]).all()


BAD_OPTIONS = [(0, 0.0), (2.5, 0.0), (8, 1.0), (8, -0.1), (8, "a")]


@pytest.mark.parametrize(("size", "momentum"), BAD_OPTIONS)
def test_options_out_of_range_are_refused(size, momentum):
    with pytest.raises((TypeError, ValueError), match=r"^(size|momentum): must be .*, got"):
        Sketch(size, momentum)
