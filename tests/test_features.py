"""Surgery on shared features against the oracle on their gradients, and against the loss sum."""

import functools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from gradsurgery import LossSum, MultiTaskOptimizer, PCGrad, WeightedSum, kernels, projection_order
from gradsurgery.kernels import reference
from tests.oracle import pcgrad

pytestmark = pytest.mark.usefixtures("poisoned_empty")

TASKS = ("a", "b", "c")


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.trunk = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 5))
        self.heads = nn.ModuleDict({task: nn.Linear(5, 1) for task in TASKS})
        self.common = nn.Linear(5, 5)  # beyond the features, and of all tasks

    def losses(self, inputs):
        features = self.trunk(inputs)
        beyond = torch.tanh(self.common(features))
        return features, {
            task: ((self.heads[task](beyond) - i) ** 2).mean() for i, task in enumerate(TASKS)
        }


def inputs(step):
    return torch.randn(16, 6, generator=torch.Generator().manual_seed(step))


def optimizer_of(model, make=PCGrad, **options):
    return make(torch.optim.SGD(model.parameters(), lr=0.1), tasks=TASKS, **options)


def grads_of(module):
    return torch.cat([p.grad.flatten() for p in module.parameters()])


@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("order", [TASKS, TASKS[::-1]])
def test_the_trunk_gets_the_oracles_gradient_of_the_features(reduction, order):
    model, by_hand = Model(), Model()
    optimizer = optimizer_of(model, reduction=reduction, seed=4)
    num_conflicting = 0
    for step in range(3):
        features, losses = by_hand.losses(inputs(step))
        rows = [torch.autograd.grad(losses[t], features, retain_graph=True)[0] for t in TASKS]
        orders = projection_order(3, seed=4, step=step).tolist()
        update, weights = pcgrad(torch.stack(rows).flatten(1), orders)
        num_conflicting += bool((weights > 1).any())
        update = torch.tensor(update / (3 if reduction == "mean" else 1)).float()
        by_hand.zero_grad()
        sum(losses.values()).backward(retain_graph=True)
        of_heads = grads_of(by_hand.heads), grads_of(by_hand.common)
        by_hand.trunk.zero_grad()
        features.backward(update.view_as(features))

        optimizer.zero_grad()
        features, losses = model.losses(inputs(step))
        optimizer.feature_backward({task: losses[task] for task in order}, features)
        torch.testing.assert_close(grads_of(model.trunk), grads_of(by_hand.trunk))
        torch.testing.assert_close(grads_of(model.heads), of_heads[0])
        torch.testing.assert_close(grads_of(model.common), of_heads[1])
        np.testing.assert_allclose(optimizer.diagnostics.weights, weights, rtol=1e-5)
        optimizer.step()
        torch.optim.SGD(by_hand.parameters(), lr=0.1).step()
    assert num_conflicting > 0


def test_it_is_another_method_than_surgery_on_the_parameters():
    grads = []
    for name in ("feature_backward", "backward"):
        model = Model()
        optimizer = optimizer_of(model)
        features, losses = model.losses(inputs(0))
        if name == "backward":
            optimizer.backward(losses)
        else:
            optimizer.feature_backward(losses, features)
        grads.append(grads_of(model.trunk))
    assert (grads[0] - grads[1]).norm() > 1e-3 * grads[1].norm()


@pytest.mark.parametrize("method", ["plain", "monitored", "weighted", "start_step"])
def test_sums_are_what_they_are_without_features(method):
    make, options = {
        "plain": (LossSum, {}),
        "monitored": (LossSum, {"monitor": True}),
        "weighted": (lambda base, **o: WeightedSum(base, [1.0, 0.5, 2.0], **o), {}),
        "start_step": (PCGrad, {"start_step": 1}),
    }[method]
    grads = []
    for with_features in (True, False):
        model = Model()
        optimizer = optimizer_of(model, make, **options)
        features, losses = model.losses(inputs(0))
        if with_features:
            optimizer.feature_backward(losses, features)
        else:
            optimizer.backward(losses)
        grads.append(grads_of(model))
    torch.testing.assert_close(grads[0], grads[1])


def test_the_flops_of_the_loss_sum():
    flops = {}
    for name in ("sum", "features", "parameters"):
        model = Model()
        model.common = nn.Identity()  # else each task goes through it, and the sum once
        optimizer = optimizer_of(model)
        with FlopCounterMode(display=False) as counter:
            features, losses = model.losses(inputs(0))
            if name == "sum":
                sum(losses.values()).backward()
            elif name == "features":
                optimizer.feature_backward(losses, features)
            else:
                optimizer.backward(losses)
        flops[name] = counter.get_total_flops()
    combine = 2 * 3 * 16 * 5  # of the features' gradients, where it is a product
    assert flops["sum"] <= flops["features"] <= flops["sum"] + combine + 2 * 9 * 16 * 5
    assert flops["parameters"] > 1.5 * flops["features"]


def test_several_features_and_a_task_that_needs_one_of_them():
    first, second = nn.Linear(3, 2), nn.Linear(3, 4)
    parameters = [*first.parameters(), *second.parameters()]
    optimizer = PCGrad(torch.optim.SGD(parameters, lr=0.1))
    u, v = first(torch.ones(2, 3)), second(torch.ones(2, 3))
    optimizer.feature_backward({"one": u.sum(), "both": -u.sum() + v.sum()}, [u, v])
    # Gradients of (u, v): (1, 0) and (-1, 1), of squared norms 4 and 12, with a dot of -4.
    expected = {"u": 2 / 3 + 0, "v": 1 / 3 + 1}
    assert first.bias.grad.tolist() == pytest.approx([2 * expected["u"]] * 2)
    assert second.bias.grad.tolist() == pytest.approx([2 * expected["v"]] * 4)


def test_the_kernels_are_those_of_the_features_device(monkeypatch):
    asked = []

    def choose(fused, *devices):
        asked.append(devices)
        return reference

    model = Model()
    optimizer = optimizer_of(model)
    monkeypatch.setattr(kernels, "choose", choose)
    features, losses = model.losses(inputs(0))
    optimizer.feature_backward(losses, features)
    assert set(asked) == {(torch.device("cpu"),)}


def test_gradients_that_were_there_are_added_to():
    model = Model()
    optimizer = optimizer_of(model)
    features, losses = model.losses(inputs(0))
    optimizer.feature_backward(losses, features)
    once = grads_of(model)
    optimizer.zero_grad()
    sum(p.sum() for p in model.parameters()).backward()  # a regulariser of all tasks
    features, losses = model.losses(inputs(0))
    optimizer.feature_backward(losses, features)
    torch.testing.assert_close(grads_of(model), once + 1)


def test_gradients_of_the_heads_have_memory_of_their_own():
    """As those that autograd leaves in .grad, so that clipping can work in place."""
    trunk, first, second = nn.Linear(4, 3), nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    head = nn.Parameter(torch.ones(2, 3).T)
    optimizer = PCGrad(torch.optim.SGD([*trunk.parameters(), first, second, head], lr=0.1))
    features = trunk(torch.ones(4))
    losses = {"x": (features + first + second).sum(), "y": (features @ head).sum()}
    optimizer.feature_backward(losses, features)
    assert len({p.grad.untyped_storage().data_ptr() for p in (first, second, head)}) == 3
    assert [p.grad.stride() for p in (first, second, head)] == [(1,), (1,), head.stride()]
    first.grad.mul_(2)
    assert (first.grad.tolist(), second.grad.tolist()) == ([2.0] * 3, [1.0] * 3)


@pytest.mark.parametrize(
    ("features", "error", "rule"),
    [
        (lambda f: f.detach(), ValueError, "must need a gradient"),
        (lambda f: [], ValueError, "at least one tensor"),
        (lambda f: [f, 3], TypeError, "must be tensors, got int"),
    ],
)
def test_what_is_no_representation_is_refused_and_changes_nothing(features, error, rule):
    model = Model()
    optimizer = optimizer_of(model)
    made, losses = model.losses(inputs(0))
    with pytest.raises(error, match=rule):
        optimizer.feature_backward(losses, features(made))
    assert all(p.grad is None for p in model.parameters())
    with pytest.raises(ValueError, match="one for each of the 3 tasks"):
        optimizer.feature_backward(list(losses.values())[:2], made)


# Graphs in which something goes around the features, against sum(losses).backward() in float64.


def linear(*shape):
    return nn.Linear(*shape, dtype=torch.float64)


def network():
    torch.manual_seed(1)
    return nn.ModuleDict(
        {
            "first": linear(4, 6),
            "second": linear(6, 6),
            "head": linear(6, 1),
            "part": linear(3, 1),
            "embedding": nn.Embedding(7, 6, dtype=torch.float64),
            "memory": nn.LSTM(4, 6, dtype=torch.float64),
        }
    )


X = torch.randn(5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
IDS = torch.tensor([1, 5, 0, 2, 2])


class Square(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        ctx.variable = x  # no sign of a leaf
        return x * x

    @staticmethod
    def backward(ctx, grad):
        return 2 * ctx.saved_tensors[0] * grad


def pyramid(m):
    f1 = m["first"](X)
    f2 = m["second"](f1.tanh())
    f3 = m["second"](f2.tanh())
    losses = [m["head"](f1).square().mean(), m["head"](f1 + f3).square().mean(), f2.exp().mean()]
    return losses, [f3, f1, f2]


def fused_pyramid(m):
    f1 = m["first"](X)
    f2 = m["second"](f1.tanh())
    both = torch.cat([f1, f2]) * torch.cat([f2, f1])
    return [m["head"](both).square().mean(), both.exp().mean()], [f1, f2]


def tied(m):
    f = m["second"](m["embedding"](IDS))
    logits = f @ m["embedding"].weight.T
    return [nn.functional.cross_entropy(logits, IDS.roll(1)), f.square().mean()], f


def skip(m):
    a = m["first"](X)
    f = m["second"](a.tanh())
    return [m["head"](f + a).square().mean(), f.square().mean()], f


def penalty(m):
    f = m["second"](m["first"](X).tanh())
    weights = 0.1 * m["first"].weight.square().sum()
    return [m["head"](f).square().mean() + weights, f.square().mean()], f


def one_chunk(m):
    mean, log_var = m["first"](X).chunk(2, -1)
    return [m["part"](mean).square().mean(), log_var.exp().mean() + mean.square().mean()], mean


def every_chunk(m):
    mean, log_var = m["first"](X).chunk(2, -1)
    losses = [m["part"](mean).square().mean(), log_var.exp().mean() + mean.square().mean()]
    return losses, [mean, log_var]


def one_of_unbind(m):
    rows = m["first"](X).unbind()
    return [rows[0].square().sum(), (rows[0] * rows[1]).sum(), rows[2].sum()], [rows[1], rows[0]]


def topk(m):
    values, _ = m["first"](X).topk(2)
    return [values.square().sum(), values.exp().sum()], values


def lstm(m):
    outputs, (hidden, cell) = m["memory"](X)
    return [m["head"](outputs).square().mean(), hidden.exp().sum() + cell.square().sum()], outputs


def named_twice(m):
    f = m["first"](X)
    return [m["head"](f).square().mean(), f.exp().mean()], [f, f]


def parameter(m):
    weight = m["second"].weight
    return [(X @ weight[:4]).square().mean(), weight.exp().mean()], weight


def parameter_and_more(m):
    f = m["second"](m["embedding"](IDS))
    losses = [(f @ m["embedding"].weight.T).square().mean(), f.exp().mean()]
    return losses, [f, m["embedding"].weight, m["second"].weight]


def view(m):
    f = m["first"](X)
    part = f[:, :3]
    return [m["part"](part).square().mean(), m["head"](f).square().mean()], [part, f]


def in_place(m):
    f = m["first"](X)
    before = f.exp().sum()
    f[:, 1:].mul_(2)
    return [m["head"](f).square().mean(), before, f.exp().mean()], f


def losses_themselves(m):
    losses = list(m["first"](X).square().mean(0)[:3].unbind())
    return [losses[0], losses[1] + losses[0], losses[2] * 1], losses[:2]


def independent_loss(m):
    f = m["first"](X)
    return [m["head"](f).square().mean(), m["embedding"].weight.exp().mean()], f


def loss_is_a_parameter(m):
    f = m["first"](X)
    m["scale"] = nn.ParameterList([torch.tensor(3.0, dtype=torch.float64)])
    return [m["scale"][0], m["scale"][0] * f.sum()], f


def unused_feature(m):
    f = m["first"](X)
    return [m["head"](f).square().mean(), f.exp().mean()], [f, m["embedding"](IDS), m["part"].bias]


def empty_feature(m):
    f = m["first"](X)
    none = f[:0]
    return [f.square().mean() + none.sum(), none.exp().sum()], [none, f[:, :2], f]


def only_empty(m):
    f = m["first"](X)[:0]
    return [m["head"](f).sum(), f.exp().sum()], f


def functions_of_others(m):
    a = m["first"](X)
    f = m["second"](Square.apply(a))
    return [Square.apply(f + a).mean(), m["head"](Square.apply(f)).mean()], f


def checkpointed(m):
    a = m["first"](X)
    f = checkpoint(lambda x: m["second"](x).tanh(), a, use_reentrant=False)
    beyond = checkpoint(lambda x: m["head"](x).square(), f, use_reentrant=False)
    return [beyond.mean(), (f * a).mean()], f


def checkpointed_below(m):
    f = checkpoint(lambda x: m["second"](x).tanh(), m["first"](X), use_reentrant=True)
    return [m["head"](f).square().mean(), f.mean() + m["second"].weight.square().sum()], f


def complex_numbers(m):
    f = torch.fft.rfft(m["first"](X))
    g = torch.complex(f.real, f.imag * 2)
    return [(f * g.conj()).abs().sum(), (g - 1j).abs().square().sum()], [f.real, f, g]


def mixed_types(m):
    f = m["first"](X)
    narrow, wide = f[:, :3].exp().to(torch.complex64), f.float()
    return [narrow.abs().square().sum().double(), wide.double().exp().sum()], [wide, narrow, f]


def cut_off(m):
    f = m["first"](X)

    class Nothing(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.sum()

        @staticmethod
        def backward(ctx, grad):
            return None

    return [Nothing.apply(f), Nothing.apply(m["head"](f))], f


def sparse_head(m):
    f = m["first"](X)
    rows = nn.functional.embedding(IDS, m["embedding"].weight, sparse=True)
    return [(rows * f).sum(), f.square().mean()], f


GRAPHS = [
    pyramid,
    fused_pyramid,
    tied,
    skip,
    penalty,
    one_chunk,
    every_chunk,
    one_of_unbind,
    topk,
    lstm,
    named_twice,
    parameter,
    parameter_and_more,
    view,
    in_place,
    losses_themselves,
    independent_loss,
    loss_is_a_parameter,
    unused_feature,
    empty_feature,
    only_empty,
    functions_of_others,
    checkpointed,
    checkpointed_below,
    complex_numbers,
    mixed_types,
    cut_off,
    sparse_head,
]


def ones(gram):
    return gram.new_ones(len(gram))


def all_grads(parameters):
    return [p.grad if p.grad is None else p.grad.to_dense() for p in parameters]


def assert_same_grads(found, expected, **tolerance):
    assert [grad is None for grad in found] == [grad is None for grad in expected]
    for one, other in zip(found, expected, strict=True):
        if one is not None:
            torch.testing.assert_close(one, other, **tolerance)


@pytest.mark.parametrize("retain_graph", [False, True])
@pytest.mark.parametrize("wrapper", ["ones", "pcgrad"])
@pytest.mark.parametrize("make", GRAPHS)
def test_weights_of_one_give_the_sum_of_the_losses(make, wrapper, retain_graph):
    model = network()
    losses, features = make(model)
    parameters = list(model.parameters())
    # The optimizer holds a part of them; the others get their gradient like those.
    base = torch.optim.SGD(parameters[: len(parameters) // 2], lr=0.1)
    if wrapper == "ones":
        optimizer = MultiTaskOptimizer(base, ones)
    else:
        optimizer = PCGrad(base)
        losses = [sum(losses), 2 * sum(losses)]  # no conflict
    for _ in range(2 if retain_graph else 1):  # gradients add up
        sum(losses).backward(retain_graph=True)
    expected = all_grads(parameters)
    model.zero_grad()
    for _ in range(2 if retain_graph else 1):
        optimizer.feature_backward(losses, features, retain_graph)
    assert optimizer.diagnostics.weights.tolist() == [1.0] * len(losses)
    narrow = {"rtol": 1e-6, "atol": 1e-6} if make is mixed_types else {"rtol": 1e-9, "atol": 1e-12}
    assert_same_grads(all_grads(parameters), expected, **narrow)


def test_by_default_the_graph_below_is_freed():
    for make in (every_chunk, tied):
        model = network()
        losses, features = make(model)
        MultiTaskOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), ones).feature_backward(
            losses, features
        )
        with pytest.raises(RuntimeError, match="second time"):
            sum(losses).backward()


def test_conflicting_tasks_by_hand():
    """A pyramid with a tied matrix: what autograd gives where each scale is cut off for itself."""
    model = network()
    parameters = list(model.parameters())
    matrix = model["embedding"].weight

    def losses_of(f1, f2):
        return [
            ((f1 @ matrix.T).tanh().sum(0) - 1).square().sum() + f2.sum(),
            -2 * (f1 * f2).sum() + matrix.square().sum(),
            model["head"](f2).sum() - f1.sum(),
        ]

    f1 = model["first"](X) + matrix[:5]
    f2 = model["second"](f1.tanh())
    cut = [f1.detach().requires_grad_(), f2.detach().requires_grad_()]
    by_hand = losses_of(*cut)
    rows = [
        torch.cat([g.flatten() for g in torch.autograd.grad(loss, cut, retain_graph=True)])
        for loss in by_hand
    ]
    orders = projection_order(3, seed=0, step=0).tolist()
    update, weights = pcgrad(torch.stack(rows), orders)
    assert (weights > 1).any()
    sum(by_hand).backward()
    torch.autograd.backward([f1, f2], list(torch.tensor(update).view(2, *f1.shape)))
    expected = all_grads(parameters)

    model.zero_grad()
    optimizer = PCGrad(torch.optim.SGD(parameters, lr=0.1))
    f1 = model["first"](X) + matrix[:5]
    f2 = model["second"](f1.tanh())
    optimizer.feature_backward(losses_of(f1, f2), [f1, f2])
    assert_same_grads(all_grads(parameters), expected)
    np.testing.assert_allclose(optimizer.diagnostics.weights, weights)


def run_program(program, leaves, features, cut):
    """The values of a program, and with ``cut`` those in which no feature hangs on another."""
    values, leaves_of_cut = list(leaves), {}
    for place, (operation, *operands) in enumerate(program, start=len(leaves)):
        first, second = (values[operand % len(values)] for operand in operands)
        if operation == "halves":
            first, second = torch.cat([first, second]).chunk(2)
            made = first if place % 2 else second
        else:
            made = {
                "add": lambda a, b: a + b,
                "multiply": lambda a, b: a * b,
                "tanh": lambda a, b: a.tanh(),
                "view": lambda a, b: a.view_as(a),
                "matrix": lambda a, b: a.outer(b).softmax(0) @ a,
                "stack": lambda a, b: torch.stack([a, b.sin()]).unbind()[1],
                "function": lambda a, b: Square.apply(a),
            }[operation](first, second)
        values.append(made)
        if cut and place in features:
            leaves_of_cut[place] = values[place] = made.detach().requires_grad_()
    return values, leaves_of_cut


OPERATIONS = ["add", "multiply", "tanh", "view", "matrix", "stack", "function", "halves"]
PLACES = st.integers(0, 30)


@settings(max_examples=50)
@given(
    st.lists(st.tuples(st.sampled_from(OPERATIONS), PLACES, PLACES), min_size=2, max_size=9),
    st.lists(PLACES, min_size=1, max_size=4),
    st.lists(st.tuples(PLACES, PLACES), min_size=1, max_size=4),
    st.booleans(),
    st.booleans(),
)
def test_any_graph_and_any_features(program, chosen, ends, are_ones, retain_graph):
    """Weights of one against the loss sum, any others against the same program cut by hand."""
    generator = torch.Generator().manual_seed(0)
    leaves = [
        torch.randn(3, dtype=torch.float64, generator=generator).requires_grad_() for _ in range(3)
    ]
    features = {3 + place % len(program) for place in chosen}

    def losses_of(values):
        n = len(values)
        return [(values[a % n] * values[b % n].exp().clamp(max=9)).sum() for a, b in ends]

    values, at_cut = run_program(program, leaves, features, cut=True)
    weights = torch.linspace(2, -1, len(ends), dtype=torch.float64)
    weights = torch.ones_like(weights) if are_ones else weights
    upstream = {place: torch.zeros(3, dtype=torch.float64) for place in at_cut}
    reached = set()
    for weight, loss in zip(weights, losses_of(values), strict=True):
        loss.backward(retain_graph=True)  # to the leaves around the features, and to the cut
        for place, leaf in at_cut.items():
            if leaf.grad is not None:
                upstream[place] += weight * leaf.grad
                reached.add(place)
                leaf.grad = None
    whole, _ = run_program(program, leaves, features, cut=False)
    if reached:
        torch.autograd.backward([whole[p] for p in reached], [upstream[p] for p in reached])
    expected = all_grads(leaves)

    optimizer = MultiTaskOptimizer(torch.optim.SGD(leaves, lr=0.1), lambda gram: weights)
    if are_ones:
        optimizer.zero_grad()
        sum(losses_of(run_program(program, leaves, features, cut=False)[0])).backward()
        assert_same_grads(all_grads(leaves), expected)
    optimizer.zero_grad()
    values, _ = run_program(program, leaves, features, cut=False)
    call = functools.partial(
        optimizer.feature_backward, losses_of(values), [values[p] for p in features], retain_graph
    )
    if not reached:
        with pytest.raises(ValueError, match=r"no loss depends on any of them; .* backward\(\)"):
            call()
        return
    call()
    assert_same_grads(all_grads(leaves), expected, rtol=1e-8, atol=1e-10)


def test_hooks_of_features_and_leaves_see_the_total_once():
    """As in sum(losses).backward(), and so do gradients that are retained."""
    seen = {}
    for call in ("sum", "features"):
        model = network()
        f1 = model["first"](X)
        middle = f1.tanh()
        f2 = model["second"](middle)
        tensors = [f1, f2, model["first"].weight, model["head"].weight]
        found = seen[call] = []
        for tensor in tensors:
            tensor.register_hook(lambda grad, found=found: found.append(grad) or grad.clamp(max=1))
        f1.retain_grad()
        middle.retain_grad()
        # What goes around a feature comes through here, and is no None.
        middle.register_hook(lambda grad: grad * 2)
        for leaf in (model["first"].weight, model["head"].weight):
            leaf.register_post_accumulate_grad_hook(
                lambda leaf, found=found: found.append(leaf.grad.clone())
            )
        losses = [
            model["head"](f1).square().mean(),
            model["head"](f2).square().mean() + model["first"].weight.square().sum(),
        ]
        if call == "sum":
            sum(losses).backward()
        else:
            base = torch.optim.SGD(model.parameters(), lr=0.1)
            MultiTaskOptimizer(base, ones).feature_backward(losses, [f1, f2])
        found += [f1.grad, middle.grad, *(p.grad for p in model.parameters())]
        key = [-1.0 if grad is None else float(grad.sum()) for grad in found[:6]]
        found[:6] = [found[place] for place in sorted(range(6), key=key.__getitem__)]
        assert all(len(tensor._backward_hooks) == 1 for tensor in tensors)
    assert_same_grads(seen["features"], seen["sum"])


def test_a_task_that_is_dropped_takes_nothing_of_others_with_it():
    """A gradient that a custom function hands out is a tensor of its own, and stays."""
    kept = torch.full((6,), float("nan"), dtype=torch.float64)

    class Constant(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.sum()

        @staticmethod
        def backward(ctx, grad):
            return kept

    model = network()
    optimizer = PCGrad(
        torch.optim.SGD(model.parameters(), lr=0.1), on_nonfinite="skip_task", tasks="ab"
    )
    f = model["first"](X)
    bias = model["second"].bias
    optimizer.feature_backward({"a": f.sum(), "b": Constant.apply(bias) + 2 * f.sum()}, f)
    assert kept.isnan().all()
    assert optimizer.diagnostics.num_nonfinite.tolist() == [0, 1]
    assert bias.grad.tolist() == [0.0] * 6
    assert model["first"].bias.grad.tolist() == [5.0] * 6


@pytest.mark.parametrize(
    ("make", "rule"),
    [
        (lambda m, f: (m["embedding"].weight, [f.sum()] * 2), "no loss depends on any of them"),
        (
            lambda m, f: (f, [checkpoint(m["head"], f, use_reentrant=True).sum(), f.sum()]),
            "must not meet checkpoint",
        ),
        (
            lambda m, f: (
                g := m["second"](checkpoint(torch.tanh, f, use_reentrant=True)),
                [(g + f).sum(), g.sum()],
            ),
            "must not meet checkpoint",
        ),
        (
            lambda m, f: ([f, torch.ones(2, device="meta", requires_grad=True)], [f.sum()] * 2),
            "one device",
        ),
        (lambda m, f: ([f, f.to_sparse()], [f.sum()] * 2), "must be dense"),
    ],
)
def test_what_cannot_be_told_is_refused_before_anything_is_changed(make, rule):
    model = network()
    model["head"].bias.grad = torch.ones(1, dtype=torch.float64)
    optimizer = PCGrad(torch.optim.SGD(model.parameters(), lr=0.1))
    before = optimizer.state_dict()
    features, losses = make(model, model["first"](X))
    with pytest.raises(ValueError, match=rule) as caught:
        optimizer.feature_backward(losses, features)
    assert "backward()" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert optimizer.state_dict() == before
    assert optimizer.diagnostics.num_surgeries == 0
    assert [p for p in model.parameters() if p.grad is not None] == [model["head"].bias]
    optimizer.backward(losses)  # the remedy
