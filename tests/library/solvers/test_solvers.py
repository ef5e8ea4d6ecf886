"""Solvers' ways against conditions of optimality, and the operations a device would launch."""

from functools import partial

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from gradsurgery.methods.gradvac import gradvac_weights
from gradsurgery.methods.order import projection_order
from gradsurgery.methods.pcgrad import pcgrad_coefficients
from gradsurgery.solvers import plain
from gradsurgery.solvers.cosines import cosines, ridge
from gradsurgery.solvers.newton import bargain
from gradsurgery.solvers.nonneg import _by_enumeration, _by_interior_point, _by_pivoting
from gradsurgery.solvers.spectrum import spectrum
from tests.library.methods.test_accuracy import (
    FAMILIES,
    METHODS,
    SINGULAR,
    SIZES,
    families,
    gram_of,
)

READS = ("aten._local_scalar_dense", "aten.item", "aten.is_nonzero", "aten.nonzero")
MOST_LAUNCHES = 120
MOST_OF_ALIGNED = {2: 40, 3: 185, 8: 575}  # without the fused kernel, which is one
PASSED_OVER = {
    "view",
    "expand",
    "unsqueeze",
    "squeeze",
    "select",
    "slice",
    "t",
    "transpose",
    "permute",
    "diagonal",
    "alias",
    "detach",
    "_unsafe_view",
    "unbind",
    "as_strided",
    "split",
    "lift_fresh",
    "reshape",
    "empty",
    "_reshape_alias",
}


class Launches(TorchDispatchMode):
    """Counts operations that are no views, and lists those that read."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = str(function.overloadpacket)
        if name.split(".")[-1] not in PASSED_OVER:
            self.names.append(name)
        return function(*args, **(kwargs or {}))


ORDERS = {num_tasks: projection_order(num_tasks, seed=3, step=1) for num_tasks in (*SIZES, 10)}


def gradvac(gram):
    """Weights, and below them targets of a second step."""
    order = ORDERS[gram.shape[-1]]
    targets = torch.zeros_like(gram)
    for _ in range(2):
        weights, targets = gradvac_weights(gram, targets, order)
    return torch.cat([weights.unsqueeze(-2), targets], -2)


def one_gradvac(gram):
    weights, _ = gradvac_weights(gram, torch.full_like(gram, 0.2), ORDERS[gram.shape[-1]])
    return weights


ON_DEVICE = {name: partial(METHODS[name], fixed=True) for name in METHODS} | {
    "gradvac": one_gradvac
}


def launches(name, num_tasks):
    gram = gram_of(families(num_tasks, seed=0)["random"])
    weights_of = ON_DEVICE[name]
    weights_of(gram)  # constants are made once
    with Launches() as counted:
        weights_of(gram)
    return counted.names


@pytest.mark.parametrize("num_tasks", [2, 3, 8])
@pytest.mark.parametrize("name", [*METHODS, "gradvac"])
def test_launches_are_few(name, num_tasks, monkeypatch):
    monkeypatch.setattr(plain, "_MOST_NUMBERS", 0)  # GradVac's way on a device
    most = MOST_OF_ALIGNED[num_tasks] if name == "aligned_mtl" else MOST_LAUNCHES
    assert len(launches(name, num_tasks)) <= most


@pytest.mark.parametrize("num_tasks", [1, 3, 8, 16])
@pytest.mark.parametrize("name", [*METHODS, "gradvac"])
def test_nothing_is_read(name, num_tasks, monkeypatch):
    monkeypatch.setattr(plain, "_MOST_NUMBERS", 0)
    assert not [launch for launch in launches(name, num_tasks) if launch in READS]


def pcgrad(gram):
    return pcgrad_coefficients(gram, ORDERS[gram.shape[-1]])


SOLVED = ("upgrad", "dualproj", "imtl_g", "config")
ON_HOST = {name: METHODS[name] for name in SOLVED} | {"pcgrad": pcgrad, "gradvac": gradvac}


@pytest.mark.parametrize("num_tasks", [1, 2, 3, 8, 10])
@pytest.mark.parametrize("name", ON_HOST)
def test_few_tasks_on_a_cpu_take_few_operations_on_tensors(name, num_tasks):
    gram = gram_of(families(num_tasks, seed=0)["random"])
    with Launches() as counted:
        ON_HOST[name](gram)
    assert len(counted.names) <= (8 if name == "gradvac" else 3), counted.names


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("num_tasks", [1, 2, 3, 5, 8, 10])
@pytest.mark.parametrize("name", ON_HOST)
def test_numbers_agree_with_tensors(name, num_tasks, family, monkeypatch):
    rows = torch.stack([families(num_tasks, seed)[family] for seed in range(3)])
    bound = 1e-5 if family in SINGULAR else 1e-8
    for some in (rows, rows[0], rows[:0], rows.unsqueeze(1)):
        gram = gram_of(some)
        found = ON_HOST[name](gram)
        with monkeypatch.context() as patched:
            patched.setattr(plain, "_MOST_NUMBERS", 0)
            expected = ON_HOST[name](gram)
        assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
        difference = found - expected
        if name == "gradvac":
            torch.testing.assert_close(found[..., 1:, :], expected[..., 1:, :], rtol=0, atol=bound)
            difference = difference[..., 0, :]
        if name != "pcgrad":
            difference = difference.unsqueeze(-2)
        unit = some.norm(dim=-1, keepdim=True).amax(-2, keepdim=True)
        difference = difference @ some / unit
        torch.testing.assert_close(difference, torch.zeros_like(difference), rtol=0, atol=bound)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("num_tasks", SIZES)
def test_three_ways_to_a_nonnegative_program(num_tasks, family):
    matrix = cosines(gram_of(families(num_tasks, seed=2)[family])).matrix
    ways = [_by_pivoting(matrix, matrix)]
    repeated = matrix.expand(num_tasks, -1, -1)
    ways.append(_by_interior_point(repeated, matrix))
    if num_tasks <= 8:
        ways.append(_by_enumeration(matrix, matrix))
    for x in ways:
        slack = x @ matrix + matrix
        bound = 1e-5 if family in ("rank-deficient", "opposite") else 1e-9
        assert x.min() >= 0
        assert slack.min() >= -bound
        assert (x * slack).sum(-1).abs().max() <= bound


@pytest.mark.parametrize("fixed", [False, True])
@pytest.mark.parametrize("num_tasks", SIZES)
def test_a_bargain_meets_its_equation(num_tasks, fixed):
    matrix = cosines(gram_of(families(num_tasks, seed=5)["conflict"])).matrix
    for power in (0.5, 1.0, 2.0):
        v = bargain(matrix, torch.zeros(num_tasks).double(), power, fixed=fixed).exp()
        torch.testing.assert_close(matrix @ v * v**power, torch.ones_like(v), rtol=0, atol=1e-8)


@pytest.mark.parametrize("num_tasks", SIZES)
@pytest.mark.parametrize("family", FAMILIES)
def test_rotations_find_the_eigenvalues(num_tasks, family):
    gram = gram_of(families(num_tasks, seed=3)[family])
    values, vectors = spectrum(gram, fixed=True)
    expected = torch.linalg.eigvalsh(gram)
    unit = expected[-1]
    torch.testing.assert_close(values.sort().values / unit, expected / unit, rtol=0, atol=1e-12)
    eye = torch.eye(num_tasks).double()
    torch.testing.assert_close(vectors.mT @ vectors, eye, rtol=0, atol=1e-12)


def test_the_ridge_lies_above_the_noise():
    gram = gram_of(families(3, seed=0)["random"])
    assert ridge(gram) == 1e-13
    assert ridge(gram, noise=1e-7) == pytest.approx(1.2e-6)
    found = cosines(gram, noise=1e-7)
    assert found.matrix.diagonal().tolist() == [1 + 1.2e-6] * 3
