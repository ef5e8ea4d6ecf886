"""The oracle against numbers worked out by hand from Algorithm 1."""

import ast
from pathlib import Path

import numpy as np
import pytest

from tests import oracle

TWO_TASKS = [[-4.0, 1.0, 1.0], [6.0, 1.0, 1.0]]


def test_golden_case():
    update, weights = oracle.pcgrad(TWO_TASKS, [[0, 1], [1, 0]])
    np.testing.assert_allclose(update, [0.5848, 3.8012, 3.8012], atol=5e-5)
    np.testing.assert_allclose(weights, [1 + 22 / 18, 1 + 22 / 38], rtol=1e-15)
    np.testing.assert_allclose(weights, [2.2222, 1.5789], atol=5e-5)


# With a = (1, 0), b = (-1, 1), c = (-1, -2), the task a
#   visits b first: a.b = -1, a' = a + b/2 = (1/2, 1/2); a'.c = -3/2, a'' = a' + 3c/10;
#   visits c first: a.c = -1, a' = a + c/5 = (4/5, -2/5); a'.b = -6/5, a'' = a' + 3b/5.
# Of the other two, b visits a: b.a = -1, b' = b + a = (0, 1); b'.c = -2, b'' = b' + 2c/5;
#           or c first: b.c = -1, b' = b + c/5 = (-6/5, 3/5); b'.a = -6/5, b'' = b' + 6a/5;
# and c visits a: c.a = -1, c' = c + a = (0, -2); c'.b = -2, c'' = c' + b;
#           or b first: c.b = -1, c' = c + b/2 = (-3/2, -3/2); c'.a = -3/2, c'' = c' + 3a/2.
THREE_TASKS = [[1.0, 0.0], [-1.0, 1.0], [-1.0, -2.0]]


@pytest.mark.parametrize(
    ("task", "order", "projected", "coefficients"),
    [
        (0, [1, 2], [0.2, -0.1], [1.0, 0.5, 0.3]),
        (0, [2, 1], [0.2, 0.2], [1.0, 0.6, 0.2]),
        (1, [0, 2], [-0.4, 0.2], [1.0, 1.0, 0.4]),
        (1, [2, 0], [0.0, 0.6], [1.2, 1.0, 0.2]),
        (2, [0, 1], [-1.0, -1.0], [1.0, 1.0, 1.0]),
        (2, [1, 0], [0.0, -1.5], [1.5, 0.5, 1.0]),
    ],
)
def test_projection_worked_by_hand(task, order, projected, coefficients):
    found = oracle.project(THREE_TASKS, task, order)
    np.testing.assert_allclose(found[0], projected, atol=1e-15)
    np.testing.assert_allclose(found[1], coefficients, atol=1e-15)


def test_order_matters_from_three_tasks_up():
    one, weights = oracle.pcgrad(THREE_TASKS, [[0, 1, 2], [1, 0, 2], [2, 0, 1]])
    other, _ = oracle.pcgrad(THREE_TASKS, [[2, 1, 0], [2, 0, 1], [1, 0, 2]])
    np.testing.assert_allclose(one, [-1.2, -0.9], atol=1e-15)
    np.testing.assert_allclose(weights, [3.0, 2.5, 1.7], atol=1e-15)
    np.testing.assert_allclose(other, [0.2, -0.7], atol=1e-15)


def test_update_is_the_weighted_sum_of_the_original_gradients():
    rng = np.random.default_rng(0)
    for num_tasks in range(1, 9):
        grads = rng.normal(size=(num_tasks, 5))
        orders = [rng.permutation(num_tasks) for _ in range(num_tasks)]
        update, weights = oracle.pcgrad(grads, orders)
        np.testing.assert_allclose(weights @ grads, update, atol=1e-12)


def test_a_right_angle_is_no_conflict():
    update, weights = oracle.pcgrad([[1.0, 0.0], [0.0, 1.0]], [[1], [0]])
    assert update.tolist() == [1.0, 1.0]
    assert weights.tolist() == [1.0, 1.0]


def test_visiting_oneself_changes_nothing():
    # In the plane, three mutually conflicting gradients leave a remainder that conflicts with its
    # own original: an implementation that visits itself differs here.
    grads = [[1.0, 0.0], [-1.0, 1.0], [-2.0, -1.0]]
    without, _ = oracle.pcgrad(grads, [[1, 2], [0, 2], [0, 1]])
    update, _ = oracle.pcgrad(grads, [[1, 2, 0], [0, 2, 1], [0, 1, 2]])
    assert update.tolist() == without.tolist()
    projected, _ = oracle.project(grads, 0, [1, 2])
    assert projected @ np.array(grads[0]) < 0


def test_every_update_holds_one_for_each_choice_of_orders():
    updates = oracle.every_update(THREE_TASKS)
    assert len(updates) == 2**3
    assert len({tuple(np.round(update, 12)) for update in updates}) == 8


def test_imports_nothing_from_the_library():
    tree = ast.parse(Path(oracle.__file__).read_text(encoding="utf-8"))
    names = {
        alias.name.split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for alias in node.names
    } | {
        (node.module or "").split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
    }
    assert names == {"__future__", "collections", "itertools", "numpy"}
