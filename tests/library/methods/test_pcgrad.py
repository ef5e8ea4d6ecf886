"""PCGrad's weights against the loops of the oracle, TorchJD's own draws, and their properties."""

import itertools
import math
import random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchjd.aggregation import PCGradWeighting

from gradsurgery.kernels.reference import combine, gram_matrix
from gradsurgery.methods.order import projection_order
from gradsurgery.methods.pcgrad import pcgrad_coefficients, pcgrad_weights
from tests import oracle

pytestmark = pytest.mark.usefixtures("poisoned_empty")

# A projection never lengthens a vector, so each of the T visits to each of the T tasks adds at most
# a few roundings of the largest gradient: some T^2 * 2^-53, below 1e-13 for T = 8.
TOLERANCE = 1e-12


@st.composite
def problems(draw, min_tasks=1, max_tasks=8, min_log_scale=-12, max_log_scale=12):
    """Gradients ``[T, P]`` of very different lengths, and an order for each task."""
    num_tasks = draw(st.integers(min_tasks, max_tasks))
    num_params = draw(st.integers(1, 12))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    scales = 10.0 ** rng.uniform(min_log_scale, max_log_scale, size=(num_tasks, 1))
    if draw(st.booleans()):
        scales[:] = 1.0
    # Up to full disagreement: gradients around a common direction and against it.
    common = rng.normal(size=num_params) * draw(st.sampled_from([0.0, 1.0, 10.0]))
    signs = rng.choice([-1.0, 1.0], size=(num_tasks, 1))
    grads = (rng.normal(size=(num_tasks, num_params)) + signs * common) * scales
    if draw(st.integers(0, 4)) == 0:
        grads[rng.integers(num_tasks)] = 0.0
    order = np.stack([rng.permutation(num_tasks) for _ in range(num_tasks)])
    return grads, order


def weights_of(grads, order):
    """The implementation's weights of float64 gradients."""
    grads = torch.as_tensor(grads, dtype=torch.float64)
    return pcgrad_weights(grads @ grads.T, torch.as_tensor(order)).numpy()


def longest(grads):
    return max(float(np.linalg.norm(grads, axis=1).max()), 1e-300)


def identity_orders(num_tasks):
    return torch.arange(num_tasks).expand(num_tasks, num_tasks)


# The mathematics


def test_golden_case():
    grads = torch.tensor([[-4.0, 1.0, 1.0], [6.0, 1.0, 1.0]], dtype=torch.float64)
    weights = pcgrad_weights(grads @ grads.T, identity_orders(2))
    np.testing.assert_allclose(weights, [2.2222, 1.5789], atol=5e-5)
    np.testing.assert_allclose(weights @ grads, [0.5848, 3.8012, 3.8012], atol=5e-5)


@given(problems())
def test_update_and_weights_equal_the_oracle(problem):
    grads, order = problem
    update, weights = oracle.pcgrad(grads, order)
    found = weights_of(grads, order)
    np.testing.assert_allclose(found @ grads, update, rtol=0, atol=TOLERANCE * longest(grads))
    lengths = np.linalg.norm(grads, axis=1)
    np.testing.assert_allclose(
        found * lengths, weights * lengths, rtol=0, atol=TOLERANCE * longest(grads)
    )


@given(problems(min_tasks=2))
def test_coefficients_are_each_tasks_own_projection(problem):
    grads, order = problem
    rows = torch.as_tensor(grads)
    coefficients = pcgrad_coefficients(rows @ rows.T, torch.as_tensor(order)).numpy()
    assert np.diagonal(coefficients).tolist() == [1.0] * len(grads)
    for task in range(len(grads)):
        projected, _ = oracle.project(grads, task, order[task])
        np.testing.assert_allclose(
            coefficients[task] @ grads,
            projected,
            rtol=0,
            atol=TOLERANCE * max(np.linalg.norm(grads[task]), 1e-300),
        )


@given(problems())
def test_weights_are_the_coefficients_summed_over_rows(problem):
    grads, order = (torch.as_tensor(part) for part in problem)
    gram = grads @ grads.T
    torch.testing.assert_close(
        pcgrad_weights(gram, order), pcgrad_coefficients(gram, order).sum(0), rtol=1e-15, atol=0
    )


@given(problems())
def test_weights_are_at_least_one(problem):
    assert (weights_of(*problem) >= 1.0).all()


@given(problems(), st.integers(-40, 40))
def test_homogeneous_of_degree_one(problem, exponent):
    # A power of two rounds nothing, so that the weights must not change by a single bit.
    grads, order = problem
    scale = 2.0**exponent
    assert weights_of(scale * grads, order).tolist() == weights_of(grads, order).tolist()


@given(problems(min_log_scale=-3, max_log_scale=3), st.integers(0, 2**32 - 1))
def test_linear_in_the_scale_of_each_task(problem, seed):
    # Projections see directions alone: scaling g_i scales its own projected gradient and no other.
    grads, order = problem
    scales = np.random.default_rng(seed).uniform(0.1, 10.0, size=(len(grads), 1))
    expected = sum(
        scale * oracle.project(grads, task, order[task])[0]
        for task, scale in enumerate(scales[:, 0])
    )
    scaled = scales * grads
    found = weights_of(scaled, order) @ scaled
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE * longest(scaled))


@given(problems(), st.integers(0, 2**32 - 1))
def test_permuting_tasks_and_orders_together_changes_nothing(problem, seed):
    grads, order = problem
    shuffle = np.random.default_rng(seed).permutation(len(grads))
    place = np.argsort(shuffle)  # task -> its row after the shuffle
    np.testing.assert_allclose(
        weights_of(grads[shuffle], place[order[shuffle]]) @ grads[shuffle],
        weights_of(grads, order) @ grads,
        rtol=0,
        atol=TOLERANCE * longest(grads),
    )


@given(problems(min_tasks=2, max_tasks=2))
def test_two_tasks_do_not_conflict_with_the_update(problem):
    grads, order = problem
    update = weights_of(grads, order) @ grads
    for grad in grads:
        length = np.linalg.norm(grad)
        assert update @ grad >= -TOLERANCE * longest(grads) * length


@given(problems())
def test_without_conflict_the_plain_sum(problem):
    grads, order = np.abs(problem[0]), problem[1]
    assert weights_of(grads, order).tolist() == [1.0] * len(grads)


def test_a_right_angle_is_no_conflict():
    gram = torch.eye(3, dtype=torch.float64)
    assert pcgrad_weights(gram, identity_orders(3)).tolist() == [1.0, 1.0, 1.0]


def test_the_projected_gradient_does_not_visit_itself():
    # After two projections the first task's gradient conflicts with its own original.
    grads = np.array([[1.0, 0.0], [-1.0, 1.0], [-2.0, -1.0]])
    order = [[1, 2, 0], [0, 2, 1], [0, 1, 2]]
    update, _ = oracle.pcgrad(grads, order)
    np.testing.assert_allclose(weights_of(grads, order) @ grads, update, atol=TOLERANCE)


def test_every_order_of_three_tasks():
    grads = np.array([[1.0, 0.0], [-1.0, 1.0], [-1.0, -2.0]])
    for orders in itertools.product(itertools.permutations(range(3)), repeat=3):
        update, weights = oracle.pcgrad(grads, orders)
        np.testing.assert_allclose(weights_of(grads, orders), weights, atol=TOLERANCE)
        np.testing.assert_allclose(weights_of(grads, orders) @ grads, update, atol=TOLERANCE)


@pytest.mark.parametrize("leading", [(4,), (2, 3), (1,), (0,)])
def test_leading_dimensions_are_a_loop(leading):
    generator = torch.Generator().manual_seed(0)
    grads = torch.randn(*leading, 5, 4, dtype=torch.float64, generator=generator)
    grams = grads @ grads.mT
    orders = torch.rand(*leading, 5, 5, generator=generator).argsort(-1)
    weights = pcgrad_weights(grams, orders)
    coefficients = pcgrad_coefficients(grams, orders)
    assert weights.shape == (*leading, 5)
    assert coefficients.shape == (*leading, 5, 5)
    for place in itertools.product(*map(range, leading)):
        alone = pcgrad_coefficients(grams[place], orders[place])
        torch.testing.assert_close(coefficients[place], alone, rtol=1e-13, atol=1e-13)
        torch.testing.assert_close(weights[place], alone.sum(0), rtol=1e-13, atol=1e-13)


def test_many_orders_of_one_gram_matrix():
    generator = torch.Generator().manual_seed(0)
    grads = torch.randn(4, 3, dtype=torch.float64, generator=generator)
    orders = torch.rand(7, 4, 4, generator=generator).argsort(-1)
    weights = pcgrad_weights((grads @ grads.T).expand(7, 4, 4), orders)
    for row, order in zip(weights, orders, strict=True):
        _, expected = oracle.pcgrad(grads, order)
        np.testing.assert_allclose(row, expected, atol=TOLERANCE)


def test_one_task_keeps_its_gradient():
    assert pcgrad_weights(torch.tensor([[4.0]]), torch.tensor([[0]])).tolist() == [1.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtype_is_kept_and_the_arguments_are_not_changed(dtype):
    grads = torch.tensor([[-4.0, 1.0, 1.0], [6.0, 1.0, 1.0]], dtype=dtype)
    gram, order = grads @ grads.T, identity_orders(2).clone()
    before = gram.clone(), order.clone()
    assert pcgrad_weights(gram, order).dtype == dtype
    assert pcgrad_coefficients(gram, order).dtype == dtype
    assert torch.equal(gram, before[0])
    assert torch.equal(order, before[1])


# TorchJD


@given(problems(min_tasks=2), st.integers(0, 2**31 - 1))
def test_the_same_draws_as_torchjd_give_the_same_weights(problem, seed):
    grads = torch.as_tensor(problem[0])
    gram = grads @ grads.T
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        order = torch.stack([torch.randperm(len(grads)) for _ in grads])
        torch.manual_seed(seed)
        expected = PCGradWeighting()(gram)
    lengths = grads.norm(dim=1)
    torch.testing.assert_close(
        pcgrad_weights(gram, order) * lengths,
        expected * lengths,
        rtol=1e-10,
        atol=1e-10 * longest(problem[0]),
    )


# Numbers: Gram matrix, weights and update together


def surgery(grads, order):
    """Weights and update of the three functions in a row."""
    weights = pcgrad_weights(gram_matrix(grads), torch.as_tensor(order))
    return weights, combine(weights, grads)


def test_bf16_gradients_with_a_cosine_of_minus_two_thousandths():
    generator = torch.Generator().manual_seed(0)
    first, second = torch.randn(2, 20_000, dtype=torch.float64, generator=generator)
    second -= (first @ second) / (first @ first) * first
    second -= 0.002 * second.norm() / first.norm() * first
    grads = torch.stack([first, second]).bfloat16()
    exact = grads.double()
    cosine = torch.nn.functional.cosine_similarity(exact[0], exact[1], dim=0)
    assert -0.003 < cosine < -0.001
    weights, update = surgery(grads, [[1, 0], [0, 1]])
    expected_update, expected_weights = oracle.pcgrad(exact, [[1], [0]])
    assert (weights > 1).all()
    # The surplus over 1 is about 0.002: this asks for its first four digits.
    np.testing.assert_allclose(weights, expected_weights, atol=2e-7)
    assert update.dtype == torch.bfloat16
    np.testing.assert_allclose(update.double(), expected_update, rtol=2**-8, atol=2**-8 * 1e-3)


def test_fp16_gradients_whose_inner_product_overflows_fp16():
    grads = torch.tensor([[0.0, 2000.0], [1000.0, -1000.0], [-500.0, -250.0]]).half()
    assert torch.isinf(grads[:2] @ grads[:2].T).any()
    for orders in ([[1, 2], [0, 2], [0, 1]], [[2, 1], [2, 0], [1, 0]]):
        order = [[task, *visits] for task, visits in enumerate(orders)]
        weights, update = surgery(grads, order)
        expected_update, expected_weights = oracle.pcgrad(grads.double(), order)
        np.testing.assert_allclose(weights, expected_weights, rtol=1e-6)
        np.testing.assert_allclose(update.double(), expected_update, rtol=2**-11, atol=1e-3)


@pytest.mark.parametrize("ratio", [1e-25, 1e-12, 1e25])
def test_exactly_opposed_gradients_of_very_different_lengths(ratio):
    first = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    grads = torch.stack([first, -ratio * first])
    _, update = surgery(grads, [[0, 1], [1, 0]])
    # Each projection removes all of a gradient but the rounding of -ratio * first to float32, and
    # combine rounds the two products and their sum: four half-units in the last place.
    assert update.norm() <= 4 * 2**-24 * grads.norm(dim=1).max()


@pytest.mark.parametrize("scale", [1e-5, 1e-15, 1e-30])
def test_small_gradients_change_only_the_scale(scale):
    generator = torch.Generator().manual_seed(0)
    grads = torch.randn(4, 6, generator=generator)
    order = torch.rand(4, 4, generator=generator).argsort(-1)
    weights, update = surgery(grads, order)
    assert (weights > 1).any()
    small_weights, small_update = surgery(scale * grads, order)
    torch.testing.assert_close(small_weights, weights, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(small_update / scale, update, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_an_all_zero_row_is_harmless(dtype):
    some = torch.tensor([[-4.0, 1.0, 1.0], [6.0, 1.0, 1.0]], dtype=dtype)
    grads = torch.cat([some[:1], torch.zeros(1, 3, dtype=dtype), some[1:]])
    weights, update = surgery(grads, [[1, 2, 0], [0, 2, 1], [1, 0, 2]])
    _, expected = surgery(some, [[1, 0], [0, 1]])
    np.testing.assert_allclose(weights, [1 + 22 / 18, 1.0, 1 + 22 / 38], rtol=1e-6)
    assert torch.equal(update, expected)
    weights, update = surgery(torch.zeros_like(grads), identity_orders(3))
    assert weights.tolist() == [1.0, 1.0, 1.0]
    assert update.tolist() == [0.0, 0.0, 0.0]


def test_a_gradient_beyond_all_measure_larger_than_another_is_harmless():
    # Nobody conflicts; the ratio of the first one's products to the second's norm is infinite.
    gram = torch.tensor(
        [[1e300, 1e-12, 1e140], [1e-12, 1e-322, 1e-170], [1e140, 1e-170, 1.0]], dtype=torch.float64
    )
    for order in itertools.product(itertools.permutations(range(3)), repeat=3):
        assert torch.equal(pcgrad_coefficients(gram, torch.tensor(order)), torch.eye(3).double())


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", [(0, 0), (1, 2), (2, 3)])
def test_one_non_finite_gradient_gives_a_non_finite_update(bad, place):
    generator = torch.Generator().manual_seed(1)
    for num_tasks in (3, 5):
        grads = torch.randn(num_tasks, 4, generator=generator)
        grads[place] = bad
        order = torch.rand(num_tasks, num_tasks, generator=generator).argsort(-1)
        _, update = surgery(grads, order)
        assert not update.isfinite().all()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", [(0, 0), (1, 1), (2, 2), (0, 1), (2, 1)])
def test_a_non_finite_gram_matrix_gives_non_finite_weights(bad, place):
    # Finite gradients may still have an inner product beyond the range: weights that say "no
    # conflict" would then be silently wrong.
    generator = torch.Generator().manual_seed(2)
    grads = torch.randn(2, 3, 3, dtype=torch.float64, generator=generator)
    gram = grads @ grads.mT
    gram[1][place] = gram[1].T[place] = bad
    for order in itertools.permutations(range(3)):
        weights = pcgrad_weights(gram, torch.tensor(order).expand(2, 3, 3))
        assert weights[0].isfinite().all()
        assert not weights[1].isfinite().all()


# The orders


@pytest.mark.parametrize("num_tasks", [1, 2, 3, 8, 40])
def test_each_row_of_an_order_is_a_permutation(num_tasks):
    for step in range(5):
        order = projection_order(num_tasks, seed=3, step=step)
        assert order.shape == (num_tasks, num_tasks)
        assert order.dtype == torch.int64
        expected = identity_orders(num_tasks)
        assert torch.equal(order.sort(dim=1).values, expected)


def test_order_is_a_function_of_seed_and_step():
    first = projection_order(6, seed=5, step=9)
    torch.rand(3)
    random.random()
    assert torch.equal(projection_order(6, 5, 9), first)
    assert torch.equal(projection_order(6, seed=5, step=torch.tensor(9)), first)
    assert torch.equal(projection_order(6, 5, torch.tensor(9), device="cpu"), first)
    for seed, step in ((-1, 2**40 + 3), (2**63 - 1, 0)):
        on_device = projection_order(6, seed, torch.tensor(step))
        assert torch.equal(on_device, projection_order(6, seed, step))
    assert projection_order(6, 5, 9, device="meta").device.type == "meta"


@pytest.mark.parametrize("shape", [(3, 3), (40, 40), (2, 200, 200)])
def test_nothing_of_a_device_is_read(shape):
    """Nothing can be read of meta tensors, as it must not be of those of a GPU."""
    order = projection_order(shape[-1], 5, torch.tensor(9, device="meta"))
    coefficients = pcgrad_coefficients(torch.ones(shape, device="meta"), order)
    assert (coefficients.device.type, coefficients.shape) == ("meta", shape)


def test_order_differs_between_steps_seeds_and_tasks():
    # 8!^8 orders of eight tasks: no two of these 2,520 may coincide.
    seeds = [0, 1, 2, 3, 4, 11711, 2**31, 2**32, 2**32 + 1, -1]
    steps = [*range(250), 2**32, 2**32 + 1]
    orders = {
        tuple(projection_order(8, seed, step).flatten().tolist())
        for seed in seeds
        for step in steps
    }
    assert len(orders) == len(seeds) * len(steps)
    assert len({tuple(row.tolist()) for row in projection_order(40, 0, 0)}) == 40


def test_order_leaves_the_global_random_states_alone():
    # numpy's legacy state is the global one that must stay as it is.
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()  # noqa: NPY002
    for step in range(3):
        projection_order(5, seed=0, step=step)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    np.testing.assert_equal(np.random.get_state(), states[2])  # noqa: NPY002


def deviation(num_draws, num_events, failure=1e-9):
    """How far any of the frequencies may be off: Hoeffding's bound, summed over the events."""
    return math.sqrt(math.log(2 * num_events / failure) / (2 * num_draws))


@pytest.mark.parametrize("along", ["steps", "seeds"])
def test_every_task_is_visited_at_every_place_equally_often(along):
    num_tasks, num_draws = 4, 3000
    counts = torch.zeros(num_tasks, num_tasks, num_tasks)
    for draw in range(num_draws):
        seed, step = (0, draw) if along == "steps" else (draw, 0)
        order = projection_order(num_tasks, seed, step)
        counts += torch.nn.functional.one_hot(order, num_tasks)
    off = (counts / num_draws - 1 / num_tasks).abs().max().item()
    assert off <= deviation(num_draws, num_tasks**3)


def test_orders_of_two_tasks_are_independent_and_all_occur_equally_often():
    num_draws = 3000
    code = {p: i for i, p in enumerate(itertools.permutations(range(3)))}
    counts = torch.zeros(6, 6)  # the order of task 0 and that of task 1, or of the next step
    next_counts = torch.zeros(6, 6)
    previous = None
    for step in range(num_draws):
        order = [code[tuple(row)] for row in projection_order(3, 7, step).tolist()]
        counts[order[0], order[1]] += 1
        if previous is not None:
            next_counts[previous, order[0]] += 1
        previous = order[0]
    for table in (counts, next_counts):
        off = (table / table.sum() - 1 / 36).abs().max().item()
        assert off <= deviation(num_draws - 1, 36)


def test_an_empty_batch_gives_no_weights():
    assert pcgrad_weights(torch.zeros(0, 3, 3), projection_order(3, 0, 0)).shape == (0, 3)
