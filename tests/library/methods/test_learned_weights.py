"""GradNorm, RGW and CR-MOGM against rules by hand, and what methods keep against what they should.

GradNorm's step is compared with the derivative that autograd takes of the paper's loss, RGW's
numbers with integers of Python, CR-MOGM's averages with those of the weights of single steps.
"""

import functools
import math

import pytest
import torch
from torch import nn

from gradsurgery import (
    CRMOGM,
    DBMTL,
    DWA,
    MGDA,
    RGW,
    CAGrad,
    GradNorm,
    GradVac,
    LossSum,
    Method,
    MultiTaskOptimizer,
    Seen,
    WeightedSum,
    gradnorm_weights,
    mgda_weights,
)
from gradsurgery.methods.by_task import ByTask
from gradsurgery.methods.order import standard_normals
from tests.library.methods.table import GRAM_METHODS, LOSS_METHODS, SEEING_METHODS, equal_norms

pytestmark = pytest.mark.filterwarnings("ignore:.*a step without surgery")


def problem(number, seed, scale=1.0):
    """A Gram matrix, ratios and weights with the sum T."""
    generator = torch.Generator().manual_seed(seed)
    rows = scale * torch.randn(number, 9, generator=generator, dtype=torch.float64)
    ratios, weights = torch.rand(2, number, generator=generator, dtype=torch.float64) + 0.1
    return rows @ rows.T, ratios, weights * number / weights.sum()


def normal_losses(parameter, step, scales=(1.0, 2.0, 0.5)):
    """Three losses above 0 of one parameter, on numbers of a step."""
    generator = torch.Generator().manual_seed(step)
    maps = torch.randn(3, 6, 6, generator=generator, dtype=torch.float64)
    pairs = zip("abc", maps, scales, strict=True)
    return {name: scale * (1 + (m @ parameter).square().sum()) for name, m, scale in pairs}


def trained(make, steps, absent=lambda step: ()):
    """The parameter, the weights of every step, and the optimizer."""
    parameter = nn.Parameter(torch.linspace(-1, 1, 6, dtype=torch.float64))
    optimizer = make(torch.optim.SGD([parameter], lr=1e-3), tasks="abc")
    weights = []
    for step in steps:
        optimizer.zero_grad()
        losses = normal_losses(parameter, step)
        optimizer.backward({t: loss for t, loss in losses.items() if t not in absent(step)})
        weights.append(optimizer.diagnostics.weights)
        optimizer.step()
    return parameter.detach(), weights, optimizer


class TestGradNorm:
    @pytest.mark.parametrize("number", [1, 2, 3, 8, 40])
    @pytest.mark.parametrize("alpha", [0.0, 0.12, 1.5])
    def test_a_step_is_against_the_derivative_of_the_papers_loss(self, number, alpha):
        for seed in range(5):
            gram, ratios, weights = problem(number, seed)
            learned = weights.clone().requires_grad_()
            lengths = learned * gram.diagonal().sqrt()
            target = (lengths.mean() * (ratios / ratios.mean()) ** alpha).detach()
            (slope,) = torch.autograd.grad((lengths - target).abs().sum(), learned)
            expected = weights - 0.01 * slope.sign()
            expected = expected * number / expected.sum()
            found = gradnorm_weights(gram, ratios, weights, alpha=alpha, lr=0.01)
            torch.testing.assert_close(found, expected, rtol=1e-13, atol=0)

    def test_many_steps_make_lengths_equal(self):
        gram = torch.diag(torch.tensor([1.0, 4.0, 0.25], dtype=torch.float64))
        weights = ones = torch.ones(3, dtype=torch.float64)
        for _ in range(2000):
            weights = gradnorm_weights(gram, ones, weights, alpha=0.0, lr=1e-3)
        torch.testing.assert_close(
            weights, 3 * torch.tensor([2.0, 1.0, 4.0]).double() / 7, rtol=0, atol=5e-3
        )

    def test_a_task_that_learns_slowly_is_favoured(self):
        gram = torch.eye(2, dtype=torch.float64)
        found = gradnorm_weights(gram, torch.tensor([0.5, 1.0]), torch.ones(2).double())
        assert found[1] > 1 > found[0]

    @pytest.mark.parametrize("scale", [1e-30, 1e-10, 1e10, 1e30])
    def test_it_does_not_depend_on_scales(self, scale):
        gram, ratios, weights = problem(5, 0)
        scaled, _, _ = problem(5, 0, scale)
        expected = gradnorm_weights(gram, ratios, weights)
        found = gradnorm_weights(scaled, scale * ratios, weights)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)

    def test_tasks_may_come_in_any_order_and_matrices_together(self):
        problems = [problem(6, seed) for seed in range(4)]
        order = torch.randperm(6, generator=torch.Generator().manual_seed(0))
        for gram, ratios, weights in problems:
            found = gradnorm_weights(gram[order][:, order], ratios[order], weights[order])
            expected = gradnorm_weights(gram, ratios, weights)[order]
            torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
        grams, weights = (
            torch.stack([p[i] for p in problems]).unflatten(0, (2, 2)) for i in (0, 2)
        )
        together = gradnorm_weights(grams, problems[0][1], weights)
        for place, (gram, _, start) in enumerate(problems):
            alone = gradnorm_weights(gram, problems[0][1], start)
            torch.testing.assert_close(together.flatten(0, 1)[place], alone, rtol=1e-12, atol=0)

    def test_a_task_that_tells_nothing_keeps_its_weight(self):
        gram, ratios, weights = problem(4, 3)
        rest = torch.tensor([0, 2, 3])
        alone = gradnorm_weights(gram[rest][:, rest], ratios[rest], weights[rest])
        no_grad = gram.clone()
        no_grad[1] = no_grad[:, 1] = 0
        for matrix, ratio in ((no_grad, 1.0), (gram, -1.0), (gram, math.nan), (gram, math.inf)):
            changed = ratios.clone()
            changed[1] = ratio
            found = gradnorm_weights(matrix, changed, weights)
            assert found[1] == weights[1]
            torch.testing.assert_close(found[rest], alone, rtol=1e-12, atol=0)

    @pytest.mark.parametrize("bad", [math.nan, math.inf])
    def test_where_nothing_can_be_learned_weights_stay(self, bad):
        gram, ratios, weights = problem(3, 1)
        assert torch.equal(gradnorm_weights(0 * gram, ratios, weights), weights)
        assert torch.equal(gradnorm_weights(gram, 0 * ratios, weights), weights)
        gram[0, 1] = gram[1, 0] = bad
        assert torch.equal(gradnorm_weights(gram, ratios, weights), weights)
        one = torch.ones(1, 1, dtype=torch.float64)
        assert gradnorm_weights(one, one[0], one[0]).tolist() == [1.0]

    def test_weights_never_fall_below_zero(self):
        gram = torch.diag(torch.tensor([1e8, 1.0, 1.0], dtype=torch.float64))
        weights = torch.ones(3, dtype=torch.float64)
        for _ in range(50):
            weights = gradnorm_weights(gram, torch.ones(3), weights, lr=0.1)
            assert (weights >= 0).all()
            assert weights.sum().item() == pytest.approx(3, rel=1e-12)
        assert weights[0] < 0.3

    def test_a_step_that_is_not_finite_teaches_nothing(self):
        weight = nn.Parameter(torch.ones(2))
        optimizer = GradNorm(torch.optim.SGD([weight], lr=0.0))
        kept = optimizer.weighting.state_dict
        for bad in (math.nan, math.inf):
            optimizer.zero_grad()
            optimizer.backward([weight.sum() * bad, 4 * weight.sum()])
            assert not weight.grad.isfinite().any()
        state = kept()
        assert state["weights"].tolist() == [[1.0, 1.0]]
        assert state["first_losses"].tolist() == [[0.0, 0.0]]
        optimizer.zero_grad()
        optimizer.backward([weight.sum(), 4 * weight.sum()])
        assert kept()["first_losses"].tolist() == [[2.0, 8.0]]

    @pytest.mark.parametrize("options", [{"alpha": -1.0}, {"alpha": math.nan}, {"lr": 0.0}])
    def test_options_out_of_range_are_refused(self, options):
        base = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=1.0)
        with pytest.raises(ValueError, match=rf"^{next(iter(options))}: must be .* got "):
            GradNorm(base, **options)


def mixed(key, value):
    """The hash of `order.py` in integers of Python."""
    mixed = ((key ^ (value & 0xFFFFFFFF)) + 0x9E3779B9) & 0xFFFFFFFF
    for _ in range(3):
        mixed = ((mixed ^ (mixed >> 16)) * 0x45D9F3B) & 0xFFFFFFFF
    return mixed ^ (mixed >> 16)


class TestRGW:
    @pytest.mark.parametrize(("seed", "step"), [(0, 0), (7, 3), (-1, 2**40)])
    def test_numbers_are_those_of_box_and_muller(self, seed, step):
        key = functools.reduce(mixed, (seed, seed >> 32, step, step >> 32), 0)
        cells = [(mixed(key, cell) + 0.5) / 2**32 for cell in range(10)]
        expected = [
            math.sqrt(-2 * math.log(u)) * math.cos(2 * math.pi * v)
            for u, v in zip(cells[::2], cells[1::2], strict=True)
        ]
        for given in (step, torch.tensor(step)):
            found = standard_normals(5, seed, given)
            assert found.tolist() == pytest.approx(expected, rel=1e-12, abs=1e-12)

    def test_numbers_are_normal_and_independent(self):
        drawn = torch.stack([standard_normals(4, 11, step) for step in range(20_000)])
        assert drawn.mean(0).tolist() == pytest.approx([0] * 4, abs=0.03)
        torch.testing.assert_close(drawn.T.cov(), torch.eye(4).double(), rtol=0, atol=0.04)
        assert (drawn**3).mean().item() == pytest.approx(0, abs=0.06)
        assert (drawn**4).mean().item() == pytest.approx(3, abs=0.1)
        along = torch.stack([drawn[1:, 0], drawn[:-1, 0]]).corrcoef()[0, 1]
        assert abs(along.item()) < 0.03

    def test_weights_add_up_to_one_and_do_not_depend_on_who_is_there(self):
        _, all_there, _ = trained(RGW, range(6))
        _, without, _ = trained(RGW, range(6), absent=lambda step: "b")
        for whole, part in zip(all_there, without, strict=True):
            assert whole.sum().item() == pytest.approx(1, rel=1e-12)
            torch.testing.assert_close(part, whole[[0, 2]] / whole[[0, 2]].sum())
        _, others, _ = trained(functools.partial(RGW, seed=1), range(6))
        assert all(not torch.allclose(a, b) for a, b in zip(all_there, others, strict=True))


class TestCRMOGM:
    @pytest.mark.parametrize("alpha", [0.0, 0.5, 0.9])
    @pytest.mark.parametrize("name", [*GRAM_METHODS, *SEEING_METHODS])
    def test_it_averages_the_weights_of_any_method(self, name, alpha):
        # Without a step of the base optimizer both see the same gradients.
        make = {**GRAM_METHODS, **SEEING_METHODS}[name]
        paths = []
        for averages in (False, True):
            parameter = nn.Parameter(torch.linspace(-1, 1, 6, dtype=torch.float64))
            base = torch.optim.SGD([parameter], lr=0.0)
            optimizer = make(base, tasks="abc")
            if averages:
                optimizer = CRMOGM(
                    base, optimizer.weighting, alpha=alpha, tasks="abc", seed=optimizer.seed
                )
            paths.append([])
            for step in range(6):
                optimizer.zero_grad()
                losses = normal_losses(parameter, step)
                if step == 3:
                    del losses["b"]
                optimizer.backward(losses)
                weights = optimizer.diagnostics.weights.flatten().tolist()
                paths[-1].append(dict(zip(losses, weights, strict=True)))
                optimizer.step()
        average = {}
        for new, found in zip(*paths, strict=True):
            for task, weight in new.items():
                old = average.get(task, weight)
                average[task] = alpha * old + (1 - alpha) * weight
            expected = {task: average[task] for task in new}
            assert found == pytest.approx(expected, rel=1e-9)

    @pytest.mark.parametrize("name", LOSS_METHODS)
    def test_it_averages_weights_of_the_losses_and_hands_on_what_is_learned(self, name):
        def run(averages, steps, resumed=None):
            parameter = nn.Parameter(torch.linspace(-1, 1, 6, dtype=torch.float64))
            base = torch.optim.SGD([parameter], lr=0.0)
            optimizer = LOSS_METHODS[name](base, tasks="abc")
            if averages:
                weighting = optimizer.weighting
                optimizer = CRMOGM(base, weighting, alpha=0.75, tasks="abc", seed=optimizer.seed)
            if resumed is not None:
                optimizer.load_state_dict(resumed)
            weights = []
            for step in steps:
                optimizer.zero_grad()
                losses = normal_losses(parameter, step)
                optimizer.backward(losses)
                weights.append(optimizer.diagnostics.weights.flatten())
                optimizer.step()
                if name == "famo":
                    optimizer.look_again(normal_losses(parameter, step + 100))
            return weights, optimizer

        plain, alone = run(False, range(6))
        averaged, optimizer = run(True, range(6))
        expected = plain[0]
        for new, found in zip(plain, averaged, strict=True):
            expected = 0.75 * expected + 0.25 * new
            torch.testing.assert_close(found, expected)
        numbers, others = optimizer.diagnostics.numbers, alone.diagnostics.numbers
        assert numbers.keys() == others.keys()
        for key, values in others.items():
            torch.testing.assert_close(numbers[key], values, equal_nan=True)
        _, before = run(True, range(4))
        after, _ = run(True, range(4, 6), resumed=before.state_dict())
        torch.testing.assert_close(after, averaged[4:], rtol=0, atol=0)

    def test_what_does_not_look_twice_says_so(self):
        weight = nn.Parameter(torch.ones(2))
        optimizer = CRMOGM(torch.optim.SGD([weight], lr=0.0), DWA, tasks="ab")
        optimizer.backward({"a": weight[0], "b": weight[1]})
        optimizer.step()
        with pytest.raises(ValueError, match=r"^look_again\(\): .*DWAMethod"):
            optimizer.look_again({"a": weight[0], "b": weight[1]})

    def test_what_learns_nothing_is_shown_nothing(self):
        base = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=1.0)
        assert not CRMOGM(base, MGDA).weighting.learns
        assert CRMOGM(base, DWA).weighting.learns

    def test_ways_to_say_which(self):
        class AsMethod(Method):
            def weights(self, seen):
                return mgda_weights(seen.gram)

        base = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=1.0)
        ways = [MGDA, MGDA(base).weighting, mgda_weights, AsMethod()]
        runs = [trained(functools.partial(CRMOGM, weighting=way), range(5)) for way in ways]
        for parameter, _, _ in runs[1:]:
            torch.testing.assert_close(parameter, runs[0][0], rtol=1e-8, atol=0)
        assert CRMOGM(base, DBMTL).weighting.needs_losses
        wider = CAGrad(base, c=0.9).weighting
        assert CRMOGM(base, wider).weighting.method is wider

    @pytest.mark.parametrize(
        ("weighting", "error", "message"),
        [
            (LossSum, ValueError, "^weighting: must have weights that change"),
            (WeightedSum, TypeError, "weights"),
            (dict, TypeError, "^weighting: must be a class of"),
            (3, TypeError, "^weighting: must be a callable"),
        ],
    )
    def test_what_has_no_weights_to_average_is_refused(self, weighting, error, message):
        base = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=1.0)
        with pytest.raises(error, match=message) as refusal:
            CRMOGM(base, weighting)
        assert "\n" not in str(refusal.value)

    @pytest.mark.parametrize("alpha", [-0.1, 1.0, math.nan])
    def test_a_share_out_of_range_is_refused(self, alpha):
        base = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=1.0)
        with pytest.raises(ValueError, match=r"^alpha: must be .* got "):
            CRMOGM(base, MGDA, alpha=alpha)

    def test_a_step_that_tells_nothing_leaves_the_average(self):
        weight = nn.Parameter(torch.ones(2))
        optimizer = CRMOGM(torch.optim.SGD([weight], lr=0.0), equal_norms, tasks="ab")

        def average_after(a, b):
            optimizer.zero_grad()
            optimizer.backward({"a": a * weight[0], "b": b * weight[1]})
            optimizer.backward({"a": a * weight.sum(), "b": b * weight.sum()})
            return optimizer.weighting.state_dict()["average"]

        before = average_after(1.0, 2.0)
        assert before.isfinite().all()
        assert torch.equal(average_after(math.nan, 1.0), before)
        assert torch.equal(average_after(math.inf, 1.0), before)
        assert torch.equal(average_after(0.0, 0.0), before)
        assert not torch.equal(average_after(2.0, 1.0), before)

    def test_what_the_other_method_keeps_is_resumed(self):
        make = functools.partial(CRMOGM, weighting=GradVac)
        expected, _, _ = trained(make, range(9))
        parameter, _, optimizer = trained(make, range(5))
        again = nn.Parameter(parameter.clone())
        resumed = make(torch.optim.SGD([again], lr=1e-3), tasks="abc")
        resumed.load_state_dict(optimizer.state_dict())
        for step in range(5, 9):
            resumed.zero_grad()
            resumed.backward(normal_losses(again, step))
            resumed.step()
        assert torch.equal(again, expected)


KEEPING = {
    "gradvac": GradVac,
    "gradnorm": GradNorm,
    "cr-mogm": functools.partial(CRMOGM, weighting=MGDA),
}


def tensors_of(method):
    """Tensors that a method keeps, wherever they are."""
    kept = [value.all for value in vars(method).values() if isinstance(value, ByTask)]
    assert kept
    return kept


@pytest.mark.parametrize("name", KEEPING)
def test_what_is_kept_stays_in_its_memory(name):
    """So that a captured CUDA graph, which reads where it read, goes on."""
    _, _, optimizer = trained(KEEPING[name], range(2))
    before = [(kept.data_ptr(), kept.clone()) for kept in tensors_of(optimizer.weighting)]
    (parameter,) = optimizer.param_groups[0]["params"]
    for present in ("abc", "ab"):
        optimizer.zero_grad()
        losses = normal_losses(parameter, 5)
        optimizer.backward({task: losses[task] for task in present})
        optimizer.step()
    after = tensors_of(optimizer.weighting)
    assert [kept.data_ptr() for kept in after] == [place for place, _ in before]
    assert any(not torch.equal(kept, old) for kept, (_, old) in zip(after, before, strict=True))


@pytest.mark.parametrize("name", KEEPING)
def test_each_tensor_keeps_its_own_in_steps_in_which_others_are_shared(name):
    """Of two towers each is trained as if the other were not there, beside one that always is."""
    reached = ({0, 1, 2}, {0, 2}, {1, 2}, {2})

    def run(places):
        towers = [nn.Parameter(torch.full((6,), 0.3 * (i + 1)).double()) for i in range(3)]
        base = torch.optim.SGD(towers, lr=1e-3)
        optimizer = KEEPING[name](base, tasks="abc", granularity="tensor")
        for step in range(12):
            optimizer.zero_grad()
            losses = dict.fromkeys("abc", 1.0)  # their values are the same in all runs
            for place in places & reached[step % 4]:
                for task, loss in normal_losses(towers[place], 3 * step + place).items():
                    losses[task] = losses[task] + loss - loss.detach()
            optimizer.backward(losses)
            optimizer.step()
        return [tower.detach() for tower in towers]

    together = run({0, 1, 2})
    for place in (0, 1):
        assert torch.equal(run({place, 2})[place], together[place])


def test_tasks_and_units_that_come_later_leave_what_was_kept():
    kept = ByTask(start=0.0)

    def seen(tasks, names, units):
        return Seen(None, None, tasks, names, seed=0, step=0, units=units)

    first = seen((0, 1), ("a", "b"), (1,))
    assert kept.get(first, torch.ones(1, 2)).tolist() == [[0.0, 0.0]]
    kept.set(first, torch.tensor([[1.0, 2.0]]))
    later = seen((0, 2), ("a", "b", "c"), (0, 3))
    assert kept.get(later, torch.ones(2, 2)).tolist() == [[0.0, 0.0], [0.0, 0.0]]
    kept.set(later, torch.tensor([[3.0, 4.0], [5.0, 6.0]]))
    rows = [[3.0, 0.0, 4.0], [1.0, 2.0, 0.0], [0.0, 0.0, 0.0], [5.0, 0.0, 6.0]]
    assert kept.all.tolist() == rows
    pairs = ByTask(start=1.0, pairs=True)
    assert pairs.get(later, torch.ones(2, 2, 2)).tolist() == [[[1.0, 1.0], [1.0, 1.0]]] * 2
    pairs.set(later, torch.arange(8.0).view(2, 2, 2))
    assert pairs.all[3].tolist() == [[4.0, 1.0, 5.0], [1.0, 1.0, 1.0], [6.0, 1.0, 7.0]]


def test_a_step_of_one_task_changes_nothing_that_is_kept():
    for name, make in KEEPING.items():
        for granularity in ("model", "tensor"):
            made = functools.partial(make, granularity=granularity)
            _, _, optimizer = trained(made, range(3))
            before = [kept.clone() for kept in tensors_of(optimizer.weighting)]
            (parameter,) = optimizer.param_groups[0]["params"]
            optimizer.zero_grad()
            optimizer.backward({"b": normal_losses(parameter, 9)["b"]})
            assert optimizer.diagnostics.weights.tolist() in ([1.0], [[1.0]])
            optimizer.step()
            after = tensors_of(optimizer.weighting)
            assert all(torch.equal(a, b) for a, b in zip(after, before, strict=True)), name


def test_a_callable_is_not_asked_where_nothing_is_shared():
    def refuses(gram):
        raise AssertionError

    weight = nn.Parameter(torch.ones(2))
    optimizer = MultiTaskOptimizer(torch.optim.SGD([weight], lr=1.0), refuses)
    optimizer.backward({"a": weight.sum()})
    assert weight.grad.tolist() == [1.0, 1.0]
