"""Our updates against the properties that TorchJD's tests ask of its aggregators, more tightly; and
every one of TorchJD's weightings as a method of `MultiTaskOptimizer`.

Matrices are of TorchJD's kinds: of a given rank, with the singular values of normal numbers, and
strongly, weakly or not stationary by how they are made. It tests its aggregators on them in float32
to 5e-7 at best and 6e-2 at worst.
"""

import inspect
import io

import pytest
import torch
import torchjd.aggregation
from torch import nn
from torchjd.aggregation import (
    AlignedMTLWeighting,
    ConstantWeighting,
    CRMOGMWeighting,
    ExcessMTLWeighting,
    GradVacWeighting,
    IMTLGWeighting,
    KrumWeighting,
    MeanWeighting,
    MGDAWeighting,
    MoDoWeighting,
    PCDWeighting,
    PCGradWeighting,
    RandomWeighting,
    SDMGradWeighting,
    SumWeighting,
)

from gradsurgery import (
    MultiTaskOptimizer,
    aligned_mtl_weights,
    cagrad_weights,
    config_weights,
    dbmtl_weights,
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


def normal(*size, generator):
    return torch.randn(*size, generator=generator, dtype=torch.float64)


def beside(vectors, generator):
    """An orthonormal basis of what is orthogonal to orthonormal columns ``[n, k]``."""
    number, taken = vectors.shape
    drawn = normal(number, number - taken, generator=generator)
    return torch.linalg.qr(drawn - vectors @ (vectors.T @ drawn)).Q


def matrix_of(kind, number, width, rank, seed):
    """Gradients ``[T, P]`` of a rank.

    ``normal`` has directions of no preference. ``not stationary`` has a positive left singular
    vector, so that no mixture is zero; ``strong`` has a positive vector in its left kernel;
    ``weak`` has one of zeros and positive numbers there, and a positive one on the other tasks
    among the left singular vectors.
    """
    generator = torch.Generator().manual_seed(seed)
    positive = normal(number, generator=generator).abs()
    left = torch.zeros(number, 0, dtype=torch.float64)
    skipped = 0
    if kind in ("not stationary", "strong"):
        left = (positive / positive.norm()).unsqueeze(1)
        skipped = kind == "strong"
    elif kind == "weak":
        cut = int(torch.randint(1, number, (), generator=generator))
        places = torch.randperm(number, generator=generator)
        left = torch.zeros(number, 2, dtype=torch.float64)
        for column, part in enumerate((places[:cut], places[cut:])):
            left[part, column] = positive[part] / positive[part].norm()
        skipped = 1
    left = torch.cat([left, beside(left, generator)], 1)[:, skipped : skipped + rank]
    right = beside(torch.zeros(width, 0, dtype=torch.float64), generator)[:, :rank]
    return left * normal(rank, generator=generator).abs() @ right.T


# Numbers of tasks and of parameters, and ranks, of TorchJD's tests.
DIMS = [
    (1, 1, 1),
    (4, 3, 1),
    (4, 3, 2),
    (4, 3, 3),
    (9, 11, 5),
    (9, 11, 9),
    (2, 7, 2),
    (20, 30, 15),
    (20, 30, 20),
]
FULL = [dims for dims in DIMS if dims[2] == dims[0]]
TYPICAL = [("normal", *dims) for dims in DIMS] + [
    (kind, *dims)
    for kind in ("not stationary", "strong", "weak")
    for dims in DIMS
    if dims[0] > 1 and (kind == "not stationary" or dims[2] < dims[0])
]
SCALES = [0.0, 1e-10, 1e-5, 1e5, 1e10, 1e15]
SEEDS = range(3)


def in_order(function):
    """A method that visits tasks in an order: a fixed one here, by the tasks' own numbers."""

    def weights(gram, numbers):
        place = {int(task): place for place, task in enumerate(numbers)}
        fixed = projection_order(len(numbers), seed=1, step=0)
        rows = [[place[int(other)] for other in fixed[int(task)]] for task in numbers]
        return function(gram, torch.tensor(rows))

    return weights


def first_of_gradvac(gram, order):
    return gradvac_weights(gram, torch.zeros_like(gram), order)[0]


def by_gram(function, *arguments):
    return lambda gram, numbers: function(gram, *arguments)


METHODS = {
    "pcgrad": in_order(pcgrad_weights),
    "gradvac": in_order(
        lambda gram, order: gradvac_weights(gram, torch.zeros_like(gram), order)[0]
    ),
    "upgrad": by_gram(upgrad_weights),
    "dualproj": by_gram(dualproj_weights),
    "mgda": by_gram(mgda_weights),
    "sdmgrad": by_gram(sdmgrad_weights),
    "cagrad 0.5": by_gram(cagrad_weights, 0.5),
    "cagrad 1": by_gram(cagrad_weights, 1.0),
    "cagrad 2": by_gram(cagrad_weights, 2.0),
    "nash-mtl": by_gram(nash_mtl_weights),
    "fairgrad 0.5": by_gram(fairgrad_weights, 0.5),
    "fairgrad 2": by_gram(fairgrad_weights, 2.0),
    "imtl-g": by_gram(imtl_g_weights),
    "config": by_gram(config_weights),
    "aligned-mtl min": by_gram(aligned_mtl_weights, "min"),
    "aligned-mtl median": by_gram(aligned_mtl_weights, "median"),
    "aligned-mtl rmse": by_gram(aligned_mtl_weights, "rmse"),
    "db-mtl": lambda gram, numbers: dbmtl_weights(gram, 1.0 + numbers),
}


def update_of(name, rows, numbers=None):
    numbers = torch.arange(len(rows)) if numbers is None else numbers
    return METHODS[name](rows @ rows.T, numbers) @ rows


every_method = pytest.mark.parametrize("name", METHODS)
every_seed = pytest.mark.parametrize("seed", SEEDS)


def cases_of(*kinds, full=None):
    """Every matrix of some kinds, those of full rank, those that are not, or both."""
    for kind, number, width, rank in TYPICAL:
        if kind in kinds and full in (None, rank == number):
            for seed in SEEDS:
                yield matrix_of(kind, number, width, rank, seed)


ALL_KINDS = ("normal", "not stationary", "strong", "weak")


def test_matrices_are_of_their_kinds():
    for kind, number, width, rank in TYPICAL:
        rows = matrix_of(kind, number, width, rank, seed=0)
        assert rows.shape == (number, width)
        assert torch.linalg.matrix_rank(rows) == rank
        shortest = (mgda_weights(rows @ rows.T) @ rows).norm()
        if kind != "normal":
            assert (shortest > 1e-4) == (kind == "not stationary")


@every_method
def test_updates_are_finite_at_every_scale(name):
    for rows in cases_of(*ALL_KINDS):
        scaled = torch.stack([scale * rows for scale in (1.0, *SCALES)])
        weights = METHODS[name](scaled @ scaled.mT, torch.arange(len(rows)))
        updates = weights.unsqueeze(-2) @ scaled
        assert updates.shape == (len(scaled), 1, rows.shape[1])
        assert updates.isfinite().all()


def conflict(rows, update):
    """How far an update goes against a gradient, in lengths of it and of the longest."""
    lengths = rows.norm(dim=1)
    along = torch.where(lengths > 0, rows @ update / lengths, 0)
    return -along.min() / torch.maximum(update.norm(), lengths.max())


# TorchJD: 4e-4, 1e-4, 4e-4 and, of the last, nothing or 4e-4.
PEACEFUL = ("upgrad", "dualproj", "mgda", "cagrad 1", "cagrad 2")
BARGAINS = ("nash-mtl", "fairgrad 0.5", "fairgrad 2")


@pytest.mark.parametrize("name", [*PEACEFUL, *BARGAINS])
def test_updates_conflict_with_nobody(name):
    # A bargain has no solution where a mixture of gradients is zero.
    kinds = ("not stationary",) if name in BARGAINS else ALL_KINDS
    for rows in (*cases_of("normal", full=True), *cases_of(*kinds)):
        singular = torch.linalg.matrix_rank(rows) < len(rows)
        assert conflict(rows, update_of(name, rows)) <= (1e-6 if singular else 1e-8)


def assert_permuted(name, rows, bound, of=lambda update: update):
    update = update_of(name, rows)
    unit = torch.maximum(of(update).norm(), 1e-3 * rows.norm(dim=1).mean())
    for seed in range(5):
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
        permuted = update_of(name, rows[order], order)
        assert (of(permuted) - of(update)).norm() <= bound * unit


# TorchJD: 1e-4 at most for those that it tests.
@every_method
def test_tasks_may_come_in_any_order_where_no_gradient_depends_on_others(name):
    for rows in cases_of(*ALL_KINDS, full=True):
        assert_permuted(name, rows, 1e-8)


@pytest.mark.parametrize("name", [name for name in METHODS if name != "imtl-g"])
def test_tasks_may_come_in_any_order_where_gradients_depend_on_each_other(name):
    # A bargain has no solution where a mixture of gradients is zero.
    kinds = ("not stationary",) if name in BARGAINS else ALL_KINDS
    exact = name not in ("upgrad", "cagrad 1", "cagrad 2", "cagrad 0.5")
    for rows in cases_of(*kinds, full=False):
        # Those move by the root of the ridge along what is hardly there.
        assert_permuted(name, rows, 1e-8 if exact else 1e-5)


def test_the_direction_of_imtl_g_is_the_same_in_any_order():
    """Where gradients depend on each other its length is one over a sum that rounding blurs."""
    for rows in cases_of(*ALL_KINDS, full=False):
        if update_of("config", rows).norm() > 1e-3:  # else there is no direction

            def direction(update):
                unit = update / update.norm()
                return unit.unsqueeze(1) * unit  # whatever its sign

            assert_permuted("imtl-g", rows, 1e-8, direction)


# TorchJD: 6e-2 for UPGrad, 1e-4 for ConFIG.
@pytest.mark.parametrize("name", ["upgrad", "config", "pcgrad", "gradvac"])
def test_updates_are_linear_under_scaling(name):
    for place, rows in enumerate(cases_of(*ALL_KINDS)):
        generator = torch.Generator().manual_seed(place)
        one, two = torch.rand(2, len(rows), 1, generator=generator, dtype=torch.float64)
        a, b = torch.rand(2, generator=generator, dtype=torch.float64)
        together = update_of(name, (a * one + b * two) * rows)
        apart = a * update_of(name, one * rows) + b * update_of(name, two * rows)
        unit = torch.maximum(apart.norm(), 1e-3 * rows.norm(dim=1).mean())
        assert (together - apart).norm() <= 1e-8 * unit


# TorchJD: above 5e-3 and 3e-3, and nothing about strongly stationary matrices.
@pytest.mark.parametrize("name", ["upgrad", "dualproj"])
def test_an_update_is_zero_where_the_point_is_strongly_stationary_alone(name):
    for rows in cases_of("not stationary", "weak"):
        assert update_of(name, rows).norm() > 1e-2 * rows.norm(dim=1).mean()
    for rows in cases_of("strong"):
        assert update_of(name, rows).norm() <= 1e-8 * rows.norm(dim=1).mean()


# TorchJD: conditions of optimality to 1e-2.
def test_mgda_is_zero_where_the_point_is_weakly_stationary():
    for rows in cases_of("strong", "weak"):
        assert update_of("mgda", rows).norm() <= 1e-8 * rows.norm(dim=1).mean()
    for rows in cases_of("not stationary"):
        update = update_of("mgda", rows)
        assert update.norm() > 1e-3 * rows.norm(dim=1).mean()
        assert (rows @ update / update.dot(update)).min() >= 1 - 1e-8


# TorchJD's weightings that need no more than torch. Those that want the gradients themselves see a
# Gram matrix here and make some weights of it; that is what their users get, too.
WEIGHTINGS = {
    AlignedMTLWeighting: AlignedMTLWeighting,
    CRMOGMWeighting: lambda: CRMOGMWeighting(PCDWeighting()),
    ConstantWeighting: lambda: ConstantWeighting(torch.tensor([0.5, 0.2, 0.3]).double()),
    ExcessMTLWeighting: ExcessMTLWeighting,
    GradVacWeighting: GradVacWeighting,
    IMTLGWeighting: IMTLGWeighting,
    KrumWeighting: lambda: KrumWeighting(n_byzantine=0),
    MGDAWeighting: MGDAWeighting,
    MeanWeighting: MeanWeighting,
    MoDoWeighting: MoDoWeighting,
    PCDWeighting: PCDWeighting,
    PCGradWeighting: PCGradWeighting,
    RandomWeighting: RandomWeighting,
    SDMGradWeighting: SDMGradWeighting,
    SumWeighting: SumWeighting,
}
# Solvers that TorchJD asks to be installed: cvxpy, quadprog or scipy.
NEEDING_EXTRAS = {"CAGradWeighting", "DualProjWeighting", "FairGradWeighting", "UPGradWeighting"}
every_weighting = pytest.mark.parametrize("kind", WEIGHTINGS, ids=lambda kind: kind.__name__)


def test_every_weighting_of_torchjd_is_here():
    offered = {
        name
        for name, thing in inspect.getmembers(torchjd.aggregation, inspect.isclass)
        if name.endswith("Weighting") and not inspect.isabstract(thing)
    }
    assert offered - NEEDING_EXTRAS == {kind.__name__ for kind in WEIGHTINGS}


def run(parameter, optimizer, steps):
    for step in steps:
        torch.manual_seed(step)  # some draw from the global state
        optimizer.zero_grad()
        maps = torch.randn(3, 6, 6, dtype=torch.float64)
        optimizer.backward([1e-2 * (m @ parameter - i).square().sum() for i, m in enumerate(maps)])
        optimizer.step()


def started(kind):
    parameter = nn.Parameter(torch.linspace(-1, 1, 6, dtype=torch.float64))
    base = torch.optim.SGD([parameter], lr=0.05)
    return parameter, MultiTaskOptimizer(base, WEIGHTINGS[kind]())


@every_weighting
def test_a_weighting_trains_as_in_a_loop_of_its_own(kind):
    parameter, optimizer = started(kind)
    run(parameter, optimizer, range(20))
    alone, weighting = torch.linspace(-1, 1, 6, dtype=torch.float64), WEIGHTINGS[kind]()
    for step in range(20):
        torch.manual_seed(step)
        maps = torch.randn(3, 6, 6, dtype=torch.float64)
        # The gradient of |Mx - i|^2 / 100, by hand.
        rows = torch.stack([2e-2 * m.T @ (m @ alone - i) for i, m in enumerate(maps)])
        alone = alone - 0.05 * weighting(rows @ rows.T).detach() @ rows
    torch.testing.assert_close(parameter.detach(), alone, rtol=1e-6, atol=1e-8)


@every_weighting
def test_a_weighting_goes_on_from_a_checkpoint(kind):
    parameter, optimizer = started(kind)
    run(parameter, optimizer, range(5))
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    saved = parameter.detach().clone()
    run(parameter, optimizer, range(5, 12))
    again, resumed = started(kind)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    again.data.copy_(saved)
    run(again, resumed, range(5, 12))
    assert torch.equal(again, parameter)
