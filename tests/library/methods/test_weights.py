"""Weights of every Gram method against its conditions of optimality, laws and degenerate cases.

No solver is compared with itself: what an answer must satisfy is computed from the Gram matrix.
"""

import pytest
import torch

from gradsurgery import (
    aligned_mtl_weights,
    cagrad_weights,
    config_weights,
    dualproj_weights,
    fairgrad_weights,
    gradvac_weights,
    imtl_g_weights,
    mgda_weights,
    nash_mtl_weights,
    pcgrad_weights,
    projection_order,
    sdmgrad_weights,
    upgrad_weights,
)

WEIGHTS = {
    "mgda": mgda_weights,
    "upgrad": upgrad_weights,
    "dualproj": dualproj_weights,
    "cagrad": cagrad_weights,
    "sdmgrad": sdmgrad_weights,
    "nash_mtl": nash_mtl_weights,
    "fairgrad": lambda gram, **o: fairgrad_weights(gram, alpha=2.0, **o),
    "imtl_g": imtl_g_weights,
    "config": config_weights,
    "aligned_mtl": aligned_mtl_weights,
}
SOLVED = ("mgda", "upgrad", "dualproj", "cagrad", "sdmgrad", "nash_mtl", "fairgrad")  # take `fixed`
NUMBERS = (1, 2, 3, 5, 8, 16, 40)
SEEDS = range(3)
J = torch.tensor([[-4.0, 1.0, 1.0], [6.0, 1.0, 1.0]], dtype=torch.float64)

every_weights = pytest.mark.parametrize("name", WEIGHTS)
every_number = pytest.mark.parametrize("number", NUMBERS)


def rows_of(family, number, seed):
    """Gradients ``[T, P]`` of a family of matrices."""
    generator = torch.Generator().manual_seed(1000 * number + seed)

    def normal(*size):
        return torch.randn(*size, generator=generator, dtype=torch.float64)

    width = 3 * number + 5
    rows = normal(number, width)
    if family in ("nearly stationary", "scaled and nearly stationary"):
        rows = rows - 0.97 * rows.mean(0)
    if family == "agreeing":
        rows = rows + 3 * normal(width)
    if family == "rank-deficient":
        rank = max(1, number // 2)
        rows = normal(number, rank) @ normal(rank, width)
    if family == "nearly collinear":
        rows = normal(width) + 1e-3 * rows
    if family.startswith("scaled"):
        rows = rows * 10 ** (16 * torch.rand(number, 1, generator=generator).double() - 8)
    return rows


FAMILIES = ("random", "nearly stationary", "agreeing", "nearly collinear", "scaled")
ALL_FAMILIES = (*FAMILIES, "rank-deficient", "scaled and nearly stationary")


def grams(number, families=FAMILIES):
    for family in families:
        for seed in SEEDS:
            rows = rows_of(family, number, seed)
            yield family, rows @ rows.T


@every_number
def test_mgda_is_the_shortest_of_the_hull(number):
    for family, gram in grams(number, ALL_FAMILIES):
        weights = mgda_weights(gram)
        assert (weights >= 0).all(), family
        assert weights.sum().item() == pytest.approx(1, abs=1e-12)
        # (Gw)_i >= w.Gw, equal where w_i > 0, relative to the shortest gradient.
        shortest = gram.diagonal().min()
        onto = gram @ weights
        squared = weights @ onto
        tolerance = 1e-8 * (gram.diagonal() * shortest).sqrt()
        assert (onto >= squared - tolerance).all(), family
        slack = (weights * (onto - squared)).sum()
        assert slack.abs() <= 1e-8 * shortest, family


@every_number
def test_upgrad_and_dualproj_conflict_with_nobody_and_project(number):
    for family, gram in grams(number, ALL_FAMILIES):
        lengths = gram.diagonal().sqrt()
        for weigh in (upgrad_weights, dualproj_weights):
            weights = weigh(gram)
            assert (weights >= 1 / number * (1 - 1e-9)).all(), family
            # In units of the lengths of what was added, no product is below zero.
            length = (weights * lengths).sum()
            assert ((gram @ weights) / lengths >= -1e-6 * length).all(), family


@every_number
def test_dualproj_is_the_projection(number):
    for family, gram in grams(number):
        weights = dualproj_weights(gram)
        added = weights - 1 / number
        # Complementary: what was added goes along gradients that the result is orthogonal to.
        scale = (gram.diagonal().sqrt() / number).sum() ** 2
        assert (added * (gram @ weights)).abs().sum() <= 1e-8 * scale, family


@every_number
def test_upgrad_is_the_mean_of_projections(number):
    for _, gram in grams(number):
        weights = torch.zeros(number, dtype=torch.float64)
        for task in range(number):
            alone = torch.full((number,), 1e-300, dtype=torch.float64)
            alone[task] = 1.0
            weights += dualproj_weights(gram, alone) / number
        lengths = gram.diagonal().sqrt()
        found = upgrad_weights(gram)
        torch.testing.assert_close(found * lengths, weights * lengths, rtol=1e-6, atol=0)


@every_number
@pytest.mark.parametrize("c", [0.1, 0.4, 0.9, 2.0])
def test_cagrad_has_no_duality_gap(number, c):
    for family, gram in grams(number):
        weights = cagrad_weights(gram, c)
        mean = torch.full_like(weights, 1 / number)
        length = (mean @ gram @ mean).sqrt()
        added = weights - mean
        assert (added >= 0).all(), family
        radius = (added @ gram @ added).clamp_min(0).sqrt()
        assert radius.item() == pytest.approx(c * length.item(), rel=1e-6), family
        value = (gram @ weights).min()
        share = added / added.sum()
        dual = share @ gram @ mean + c * length * (share @ gram @ share).clamp_min(0).sqrt()
        # Relative to what a gradient of the mean's length along the longest would give.
        assert (dual - value).abs() <= 1e-8 * length * gram.diagonal().max().sqrt(), family


@every_number
def test_sdmgrad_is_mgda_of_gradients_that_lean_to_the_mean(number):
    for family, gram in grams(number):
        lean = torch.eye(number, dtype=torch.float64) + 0.3 / number
        mixture = mgda_weights(lean @ gram @ lean.T)
        expected = (mixture + 0.3 / number) / 1.3
        torch.testing.assert_close(
            sdmgrad_weights(gram), expected, rtol=1e-6, atol=1e-9, msg=family
        )


@every_number
@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0])
def test_a_bargain_solves_its_equation(number, alpha):
    families = FAMILIES if alpha == 1 else ("random", "agreeing", "nearly collinear")
    for family, gram in grams(number, families):
        weights = fairgrad_weights(gram, alpha)
        assert (weights > 0).all(), family
        residual = (gram @ weights) * weights ** (1 / alpha)
        torch.testing.assert_close(residual, torch.ones_like(residual), rtol=1e-6, atol=0)


@every_number
def test_nash_has_the_length_root_of_the_number_of_tasks(number):
    for family, gram in grams(number):
        weights = nash_mtl_weights(gram)
        assert (weights @ gram @ weights).item() == pytest.approx(number, rel=1e-6), family


@every_number
def test_equal_angles(number):
    for family, gram in grams(number, ("random", "agreeing", "scaled")):
        lengths = gram.diagonal().sqrt()
        onto = gram @ config_weights(gram) / lengths
        torch.testing.assert_close(onto, onto.mean().expand(number), rtol=1e-6, atol=0, msg=family)
        # As long as the gradients are along it.
        weights = config_weights(gram)
        squared = weights @ gram @ weights
        assert (gram @ weights).sum().item() == pytest.approx(squared.item(), rel=1e-9)
        impartial = imtl_g_weights(gram)
        assert impartial.sum().item() == pytest.approx(1)
        ratio = impartial / weights
        torch.testing.assert_close(ratio, ratio[0].expand(number), rtol=1e-6, atol=0, msg=family)


@every_number
@pytest.mark.parametrize("scale", ["min", "median", "rmse"])
def test_aligned_gradients_are_orthogonal_and_equally_long(number, scale):
    for _, gram in grams(number, ("random", "agreeing")):
        columns = [
            aligned_mtl_weights(gram, scale, preference=row)
            for row in torch.eye(number, dtype=torch.float64)
        ]
        turn = torch.stack(columns, 1)
        aligned = turn @ gram @ turn.T
        expected = aligned.diagonal().mean() * torch.eye(number, dtype=torch.float64)
        torch.testing.assert_close(aligned, expected, rtol=1e-7, atol=1e-7 * expected.max().item())


GOLDEN = {
    "mgda": (0.6, 0.4),
    "upgrad": (1.1111, 0.7895),
    "dualproj": (0.6111, 0.5),
    "cagrad": (0.6633, 0.5),
    "sdmgrad": (0.6, 0.4),
    "nash_mtl": (0.5915, 0.4071),
    "fairgrad": (0.4714, 0.3195),
    "imtl_g": (0.5923, 0.4077),
    "config": (1.2265, 0.8441),
    "aligned_mtl": (1.1182, 0.8166),
}


@every_weights
def test_golden_values(name):
    found = WEIGHTS[name](J @ J.T).tolist()
    assert found == pytest.approx(GOLDEN[name], abs=1e-4)


@every_weights
@every_number
def test_tasks_may_come_in_any_order(name, number):
    for family, gram in grams(number, ("random", "nearly stationary")):
        order = torch.randperm(number, generator=torch.Generator().manual_seed(1))
        weights = WEIGHTS[name](gram)
        moved = WEIGHTS[name](gram[order][:, order])
        torch.testing.assert_close(moved, weights[order], rtol=1e-6, atol=1e-9, msg=family)


EXPONENTS = {"nash_mtl": -1.0, "fairgrad": -4 / 3}  # of the weights, in the gradients' length


@every_weights
@pytest.mark.parametrize("factor", [1e-30, 1e-10, 1e10, 1e30])
def test_one_scale_of_all_gradients(name, factor):
    rows = rows_of("random", 5, 0)
    weights = WEIGHTS[name](rows @ rows.T)
    scaled = WEIGHTS[name]((factor * rows) @ (factor * rows).T)
    expected = weights * factor ** EXPONENTS.get(name, 0.0)
    torch.testing.assert_close(scaled, expected, rtol=1e-8, atol=0)


@pytest.mark.parametrize("name", ["upgrad", "config"])
def test_the_update_is_linear_in_the_length_of_each_gradient(name):
    rows = rows_of("random", 5, 0)
    factors = torch.tensor([1.0, 1e-6, 30.0, 1e5, 0.2], dtype=torch.float64)
    one, other = torch.ones_like(factors), factors
    both = one + 2 * other
    updates = [
        WEIGHTS[name]((f[:, None] * rows) @ (f[:, None] * rows).T) * f for f in (one, other, both)
    ]
    expected = updates[0] + 2 * updates[1]
    torch.testing.assert_close(updates[2], expected, rtol=1e-6, atol=1e-9)


def test_nash_does_not_see_how_long_gradients_are():
    rows = rows_of("random", 5, 0)
    factors = torch.tensor([1.0, 1e-6, 30.0, 1e5, 0.2], dtype=torch.float64)
    scaled = factors[:, None] * rows
    expected = nash_mtl_weights(rows @ rows.T)
    found = nash_mtl_weights(scaled @ scaled.T) * factors
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=0)


ALONE = {"cagrad": 1.4, "nash_mtl": 0.5, "fairgrad": 0.25 ** (2 / 3)}


@every_weights
def test_a_single_task(name):
    gram = torch.tensor([[4.0]], dtype=torch.float64)
    assert WEIGHTS[name](gram).item() == pytest.approx(ALONE.get(name, 1.0), rel=1e-9)


@every_weights
def test_a_gradient_of_zero_is_no_obstacle(name):
    rows = rows_of("random", 4, 0)
    rows[1] = 0
    weights = WEIGHTS[name](rows @ rows.T)
    assert weights.isfinite().all()
    if name == "mgda":
        assert weights.tolist() == [0.0, 1.0, 0.0, 0.0]
    elif name == "sdmgrad":  # zero leans to the mean as well
        assert (weights @ rows).norm() > 0
    else:
        assert (rows @ (weights @ rows)).any()
    if name in ("upgrad", "dualproj", "nash_mtl", "fairgrad", "imtl_g", "config"):
        assert weights[1].item() == (0.25 if name in ("upgrad", "dualproj") else 0.0)


@every_weights
def test_nothing_but_zeros(name):
    weights = WEIGHTS[name](torch.zeros(3, 3, dtype=torch.float64))
    expected = {
        "aligned_mtl": 1.0,
        **dict.fromkeys(("nash_mtl", "fairgrad", "imtl_g", "config"), 0.0),
    }
    torch.testing.assert_close(weights, torch.full_like(weights, expected.get(name, 1 / 3)))


@every_weights
def test_opposite_gradients_cancel(name):
    rows = torch.tensor([[1.0, 2.0], [-1.0, -2.0]], dtype=torch.float64)
    update = WEIGHTS[name](rows @ rows.T) @ rows
    assert update.norm() <= 1e-4 * rows.norm()


@every_weights
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_spoils_every_weight(name, bad):
    gram = J @ J.T
    gram[0, 0] = bad
    assert not WEIGHTS[name](gram).isfinite().any()


@every_weights
@pytest.mark.parametrize("number", [1, 2, 3, 8, 16])
def test_many_matrices_are_each_by_itself(name, number):
    several = torch.stack([gram for _, gram in grams(number, ("random", "agreeing"))])
    together = WEIGHTS[name](several.view(2, 3, number, number))
    alone = torch.stack([WEIGHTS[name](gram) for gram in several]).view(2, 3, number)
    torch.testing.assert_close(together, alone, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", SOLVED)
@every_number
def test_a_fixed_amount_of_work_leads_to_the_same(name, number):
    for family, gram in grams(number, ("random", "agreeing", "scaled")):
        if name == "fairgrad" and family == "scaled":
            continue  # b spans 8 powers of ten, for which 12 steps are too few
        lengths = gram.diagonal().sqrt()
        fixed, free = (WEIGHTS[name](gram, fixed=f) * lengths for f in (True, False))
        scale = free.abs().max().item()
        torch.testing.assert_close(fixed, free, rtol=1e-7, atol=1e-8 * scale, msg=family)


def test_upgrad_of_two_tasks_is_half_of_pcgrad():
    for seed in range(10):
        rows = rows_of("nearly stationary", 2, seed)
        gram = rows @ rows.T
        expected = pcgrad_weights(gram, projection_order(2, 0, 0)) / 2
        torch.testing.assert_close(upgrad_weights(gram), expected, rtol=1e-9, atol=0)


@pytest.mark.parametrize("number", [2, 3, 8])
def test_gradvac_begins_as_pcgrad(number):
    for _, gram in grams(number):
        order = projection_order(number, seed=5, step=2)
        weights, targets = gradvac_weights(gram, torch.zeros_like(gram), order)
        torch.testing.assert_close(weights, pcgrad_weights(gram, order), rtol=1e-9, atol=1e-12)
        assert (targets.abs() <= 1).all()
        assert targets.diagonal().tolist() == [0.0] * number


def gradvac_by_loops(rows, targets, order, beta):
    """The paper's algorithm on vectors."""
    targets = targets.clone()
    update = torch.zeros(rows.shape[1], dtype=torch.float64)
    for i in range(len(rows)):
        mine = rows[i].clone()
        for j in order[i]:
            if j == i:
                continue
            cosine = mine @ rows[j] / mine.norm() / rows[j].norm()
            target = targets[i, j].clone()
            if cosine < target:
                beside, other = (1 - cosine**2).sqrt(), (1 - target**2).sqrt()
                step = mine.norm() * (target * beside - cosine * other) / rows[j].norm() / other
                mine = mine + step * rows[j]
            targets[i, j] = (1 - beta) * target + beta * cosine
        update += mine
    return update, targets


@pytest.mark.parametrize("number", [2, 3, 6])
def test_gradvac_is_the_algorithm_over_many_steps(number):
    targets = by_hand = torch.zeros(number, number, dtype=torch.float64)
    for step in range(100):
        rows = rows_of("agreeing" if step % 2 else "random", number, step)
        order = projection_order(number, seed=1, step=step)
        weights, targets = gradvac_weights(rows @ rows.T, targets, order, beta=0.1)
        update, by_hand = gradvac_by_loops(rows, by_hand, order.tolist(), beta=0.1)
        torch.testing.assert_close(weights @ rows, update, rtol=1e-8, atol=1e-10)
        torch.testing.assert_close(targets, by_hand, rtol=1e-8, atol=1e-10)


def test_rank_deficient_matrices_of_forty_tasks_end():
    for seed in range(3):
        rows = rows_of("rank-deficient", 40, seed)
        gram = rows @ rows.T
        weights = upgrad_weights(gram)
        lengths = gram.diagonal().sqrt()
        product = gram @ weights / lengths
        assert (product >= -1e-5 * (weights * lengths).sum()).all()
