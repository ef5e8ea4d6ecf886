"""The Triton kernels against the reference and ``methods/pcgrad.py``: interpreted, and on a GPU.

Triton decides when it is imported whether it interprets, so the cases run in processes of their
own. What the compiler refuses the interpreter may accept, so the kernels are also compiled, which
takes no GPU.
"""

import importlib
import math
import os
import re
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import _disable_current_modes

from gradsurgery import PCGrad, aligned_mtl_weights, kernels
from gradsurgery.gradients.buffer import GradientBuffer
from gradsurgery.kernels import reference
from gradsurgery.methods.order import projection_order
from gradsurgery.methods.pcgrad import pcgrad_coefficients
from gradsurgery.solvers.spectrum import spectrum
from tests.library.solvers.test_solvers import READS, Launches

triton = pytest.importorskip("triton")

from gradsurgery.kernels import fused  # noqa: E402
from gradsurgery.kernels.fused import projection, rotations  # noqa: E402

# By their full names: `fused.combine` is the function.
products = importlib.import_module("gradsurgery.kernels.fused.gram")
sums = importlib.import_module("gradsurgery.kernels.fused.combine")

pytestmark = pytest.mark.usefixtures("poisoned_empty")

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
# One unit in the last place, relative. The interpreter cuts to bfloat16 where a GPU rounds.
UNIT = {
    torch.float64: 2.0**-52,
    torch.float32: 2.0**-23,
    torch.bfloat16: 2.0**-7,
    torch.float16: 2.0**-10,
}


@pytest.mark.parametrize("where", ["interpreter", "cuda"])
def test_cases(where):
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    if where == "interpreter":
        environment["TRITON_INTERPRET"] = "1"
    elif not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    options = ["-q", "-p", "no:cacheprovider", "-o", "python_functions=case_"]
    options += ["-W", "ignore::RuntimeWarning"]  # numpy, in the interpreter, at inf - inf
    run = subprocess.run(
        [sys.executable, "-m", "pytest", *options, __file__],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout[-5000:] + run.stderr[-5000:]


def gradients(num_tasks, num_params, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    grads = torch.randn(num_tasks, num_params, generator=generator, dtype=torch.float64)
    return grads.to(DEVICE, dtype)


def factors(*shape):
    count = math.prod(shape)
    return torch.linspace(1.0, 2.5, count, dtype=torch.float64, device=DEVICE).view(shape)


def assert_gram(gram, grads):
    """Both sum in float64, in different orders."""
    expected = reference.gram_matrix(grads)
    lengths = expected.diagonal().sqrt()
    assert (gram.dtype, gram.shape, gram.device) == (torch.float64, expected.shape, grads.device)
    assert torch.equal(gram, gram.T)
    assert ((gram - expected).abs() <= 2.0**-46 * torch.outer(lengths, lengths)).all()


def assert_combined(update, weights, grads):
    """Off by one unit of the type, and by the roundings of T products and sums in the wider one."""
    expected = reference.combine(weights, grads).double()
    wide = 2.0**-53 if grads.dtype == torch.float64 else 2.0**-24
    sums = 2 * wide * (len(grads) + 2) * (weights.double().abs() @ grads.double().abs())
    smallest = torch.finfo(grads.dtype).smallest_normal
    allowed = UNIT[grads.dtype] * expected.abs().clamp_min(smallest) + sums
    assert ((update.double() - expected).abs() <= allowed).all()


def assert_projected(gram, order):
    wide = 1e-12 if gram.dtype == torch.float64 else 1e-5
    found, expected = fused.project(gram, order), pcgrad_coefficients(gram, order)
    assert found.shape == expected.shape
    torch.testing.assert_close(found, expected, rtol=wide, atol=wide, equal_nan=True)


def weights_of(gram, order):
    return fused.project(gram, order).sum(-2)


@pytest.mark.parametrize("num_params", [0, 1, 7, 1023, 1024, 1025])
@pytest.mark.parametrize("num_tasks", range(1, 9))
def case_every_small_number_of_tasks(num_tasks, num_params):
    grads = gradients(num_tasks, num_params)
    before = grads.clone()
    weights = factors(num_tasks)
    assert_gram(fused.gram_matrix(grads), grads)
    assert_combined(fused.combine(weights, grads), weights, grads)
    assert torch.equal(grads, before)
    assert torch.equal(weights, factors(num_tasks))


@pytest.mark.parametrize("num_params", [7, 4097])
@pytest.mark.parametrize("num_tasks", [2, 3, 8])
@pytest.mark.parametrize("dtype", DTYPES)
def case_every_type(dtype, num_tasks, num_params):
    grads, weights = gradients(num_tasks, num_params, dtype), factors(num_tasks)
    assert_gram(fused.gram_matrix(grads), grads)
    update = fused.combine(weights, grads)
    assert update.dtype == dtype
    assert_combined(update, weights, grads)


@pytest.mark.parametrize(
    ("num_tasks", "num_params", "dtype"),
    [
        (9, 1025, torch.float32),
        (11, 300, torch.bfloat16),
        (17, 129, torch.float16),
        (40, 7, torch.float64),
        (40, 129, torch.float32),
    ],
)
def case_many_tasks(num_tasks, num_params, dtype):
    grads, weights = gradients(num_tasks, num_params, dtype), factors(num_tasks)
    assert_gram(fused.gram_matrix(grads), grads)
    assert_combined(fused.combine(weights, grads), weights, grads)


@pytest.mark.parametrize("num_tasks", [3, 11])
@pytest.mark.parametrize("dtype", DTYPES)
def case_combine_may_overwrite_any_row(dtype, num_tasks):
    for row in (0, 1, num_tasks - 1):
        grads, weights = gradients(num_tasks, 2050, dtype), factors(num_tasks)
        expected = fused.combine(weights, grads)
        others = [other for other in range(num_tasks) if other != row]
        untouched = grads[others].clone()
        assert fused.combine(weights, grads, out=grads[row]).data_ptr() == grads[row].data_ptr()
        assert torch.equal(grads[row], expected)
        assert torch.equal(grads[others], untouched)


def case_combine_overwrites_whatever_out_held():
    grads, weights = gradients(3, 3001), factors(3)
    out = torch.full((3001, 2), math.nan, device=DEVICE)
    assert_combined(fused.combine(weights, grads, out=out[:, 1]), weights, grads)
    assert out[:, 0].isnan().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def case_weights_may_be_strided_and_of_either_precision(dtype):
    grads, weights = gradients(3, 11), factors(3, 2).to(dtype)[:, 1]
    assert_combined(fused.combine(weights, grads), weights, grads)


LAYOUTS = {
    "every other column": lambda grads: torch.stack([grads, grads], -1).flatten(1)[:, ::2],
    "transposed": lambda grads: grads.T.contiguous().T,
    "part of wider rows": lambda grads: torch.nn.functional.pad(grads, (3, 5))[:, 3:-5],
    "every other row": lambda grads: grads.repeat_interleave(2, 0)[::2],
    "one row for all": lambda grads: grads[:1].expand_as(grads),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("num_params", [7, 2051])
def case_strided_gradients(layout, dtype, num_params):
    grads, weights = LAYOUTS[layout](gradients(3, num_params, dtype)), factors(3)
    assert_gram(fused.gram_matrix(grads), grads)
    assert_combined(fused.combine(weights, grads), weights, grads)


BOUNDS = [
    [0, 2100],
    [0, 1, 2, 2100],
    [0, 0, 700, 700, 1024, 2100, 2100],
    [5, 513, 1030, 2099],
    [3, 9],
    [7, 7, 7],
    [11, 11],
]


@pytest.mark.parametrize("bounds", BOUNDS, ids=str)
@pytest.mark.parametrize("num_tasks", [1, 3, 9])
def case_segments(bounds, num_tasks):
    grads = gradients(num_tasks, 2100)
    num_segments = len(bounds) - 1
    grams = fused.gram_matrices(grads, bounds)
    assert grams.shape == (num_segments, num_tasks, num_tasks)
    weights = factors(num_segments, num_tasks)
    before = grads.clone()
    update = fused.combine_segments(weights, grads, bounds, grads[0])
    assert update.data_ptr() == grads[0].data_ptr()
    assert torch.equal(grads[1:], before[1:])
    for gram, own, first, last in zip(grams, weights, bounds, bounds[1:], strict=False):
        assert_gram(gram, before[:, first:last])
        assert_combined(update[first:last], own, before[:, first:last])
    outside = [*range(bounds[0]), *range(bounds[-1], 2100)]
    assert torch.equal(update[outside], before[0, outside])


def case_segments_of_a_tensor_each():
    # A first and last layer, and many small tensors between them.
    bounds = [0, 3000, *range(3064, 4000, 64), 6001]
    grads = gradients(2, 6001, torch.bfloat16)
    expected = reference.gram_matrices(grads, bounds)
    torch.testing.assert_close(fused.gram_matrices(grads, bounds), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("bounds", [[], [0], [0, 11], [-1, 5], [0, 6, 5, 10]])
def case_bounds_are_refused_in_one_line(bounds):
    grads = gradients(2, 10)
    with pytest.raises(ValueError, match="bounds: must rise from at least 0 to at most 10") as one:
        fused.gram_matrices(grads, bounds)
    with pytest.raises(ValueError, match="bounds"):
        fused.combine_segments(factors(len(bounds), 2), grads, bounds, grads[0])
    assert "\n" not in str(one.value)


def case_small_cosines_survive_half_precision():
    first = torch.tensor([1.0, 0.0, 1.0, 0.0], dtype=torch.bfloat16).repeat(500)
    second = torch.tensor([-(2.0**-9), 1.0, 0.0, 1.0], dtype=torch.bfloat16).repeat(500)
    gram = fused.gram_matrix(torch.stack([first, second]).to(DEVICE))
    assert gram[0, 1].item() == -500 * 2.0**-9
    assert gram[0, 0].item() == 1000


@pytest.mark.parametrize(
    ("dtype", "value"),
    [
        (torch.float16, 6e4),
        (torch.float16, 6e-8),
        (torch.float32, 1e30),
        (torch.float32, 1e-30),
        (torch.float32, 1e-40),
        (torch.bfloat16, 1e30),
        (torch.bfloat16, 1e-30),
    ],
)
def case_gram_matrix_covers_the_whole_range_of_the_gradients(dtype, value):
    grads = torch.tensor([[value, value], [-value, value / 2]]).to(DEVICE, dtype)
    gram = fused.gram_matrix(grads)
    torch.testing.assert_close(gram, reference.gram_matrix(grads), rtol=1e-12, atol=0.0)
    assert (gram.diagonal() > 0).all()


def case_a_gradient_opposite_to_a_tiny_one():
    grads = gradients(2, 1000)
    grads[1] = -1e-25 * grads[0]
    gram = fused.gram_matrix(grads)
    assert_gram(gram, grads)
    order = projection_order(2, seed=0, step=0, device=DEVICE)
    assert_projected(gram, order)
    update = fused.combine(weights_of(gram, order), grads)
    assert update.abs().max() <= 1e-6 * grads.abs().max()


def case_no_bias_at_any_scale():
    grads, order = gradients(4, 999), projection_order(4, seed=0, step=3, device=DEVICE)
    weights = weights_of(fused.gram_matrix(grads), order)
    scaled = weights_of(fused.gram_matrix(2.0**-40 * grads), order)
    assert torch.equal(weights, scaled)


@pytest.mark.parametrize("dtype", DTYPES)
def case_a_gradient_that_is_all_zero(dtype):
    grads = gradients(3, 600, dtype)
    grads[1] = 0
    gram = fused.gram_matrix(grads)
    assert_gram(gram, grads)
    order = projection_order(3, seed=1, step=0, device=DEVICE)
    assert_projected(gram, order)
    assert weights_of(gram, order).isfinite().all()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("place", [3, 1499])
def case_non_finite_gradients_show_in_both(bad, dtype, place):
    grads = gradients(3, 1500, dtype)
    grads[1, place] = bad
    gram = fused.gram_matrix(grads)
    assert not gram[1].isfinite().any()
    assert gram[[0, 2]][:, [0, 2]].isfinite().all()
    update = fused.combine(torch.ones(3, device=DEVICE), grads)
    assert update.isfinite().logical_not().nonzero().tolist() == [[place]]
    order = projection_order(3, seed=0, step=0, device=DEVICE)
    assert weights_of(gram, order).isnan().all()


def case_combine_sums_in_a_wider_type():
    # In fp16 three times 30,000 is infinite, and in bf16 256 + 1 is 256.
    half = torch.tensor([[30_000.0], [-30_000.0]], dtype=torch.float16, device=DEVICE)
    weights = torch.tensor([3.0, 2.5], device=DEVICE)
    assert fused.combine(weights, half).tolist() == [15_000.0]
    brain = torch.tensor([[256.0], [1.0], [1.0]], dtype=torch.bfloat16, device=DEVICE)
    assert fused.combine(torch.ones(3, device=DEVICE), brain).tolist() == [258.0]


@pytest.mark.skipif(INTERPRETED, reason="the interpreter cuts to bfloat16")
def case_rounds_to_the_nearest_bfloat16():
    brain = torch.tensor([[256.0, 256.0], [1.5, 1.0]], dtype=torch.bfloat16, device=DEVICE)
    assert fused.combine(torch.ones(2, device=DEVICE), brain).tolist() == [258.0, 256.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("num_tasks", [1, 2, 5, 40, 64, 70])
def case_projection(num_tasks, dtype):
    grads = gradients(num_tasks, 2 * num_tasks, torch.float64)
    gram = reference.gram_matrix(grads).to(dtype)
    assert_projected(gram, projection_order(num_tasks, seed=3, step=1, device=DEVICE))


def case_projection_onto_a_gradient_whose_square_is_zero():
    # Of -1e-170 in float64 the square is below the smallest number, the product with 1 is not.
    rows = torch.tensor([[1.0], [-1e-170]], dtype=torch.float64, device=DEVICE)
    gram = rows @ rows.T
    assert gram[1, 1] == 0 > gram[0, 1]
    assert_projected(gram, projection_order(2, seed=0, step=0, device=DEVICE))


def case_projection_of_many_gram_matrices():
    grams = torch.stack([reference.gram_matrix(gradients(4, 6, seed=s)) for s in range(6)])
    orders = torch.stack([projection_order(4, 0, step, DEVICE) for step in range(6)])
    assert_projected(grams, orders)
    assert_projected(grams, orders[0])
    assert_projected(grams[0], orders)
    assert_projected(grams.view(2, 3, 4, 4), orders.view(2, 3, 4, 4))
    assert_projected(grams.transpose(-1, -2), orders.transpose(-1, -2).argsort(-1))
    assert_projected(grams[:0], orders[0])


def case_a_projected_gradient_does_not_visit_itself():
    # In a plane five gradients often leave one whose projection conflicts with itself.
    grams = torch.stack([reference.gram_matrix(gradients(5, 2, seed=s)) for s in range(20)])
    orders = torch.stack([projection_order(5, 0, step, DEVICE) for step in range(20)])
    assert_projected(grams, orders)


@given(
    num_tasks=st.integers(1, 5),
    num_params=st.integers(0, 600),
    seed=st.integers(0, 2**31),
    dtype=st.sampled_from(DTYPES),
    exponent=st.integers(-12, 12),
)
@settings(max_examples=25)
def case_any_gradients(num_tasks, num_params, seed, dtype, exponent):
    grads = gradients(num_tasks, num_params, dtype, seed) * 2.0**exponent
    gram, weights = fused.gram_matrix(grads), factors(num_tasks)
    assert_gram(gram, grads)
    assert_combined(fused.combine(weights, grads), weights, grads)
    assert_projected(gram, projection_order(num_tasks, seed, step=0, device=DEVICE))


@pytest.mark.parametrize("num_tasks", [3, 9])
def case_every_run_gives_the_same_bits(num_tasks):
    grads = gradients(num_tasks, 1500)
    assert torch.equal(fused.gram_matrix(grads), fused.gram_matrix(grads))


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.trunk = torch.nn.Sequential(torch.nn.Linear(6, 9), torch.nn.Tanh())
        self.heads = torch.nn.ModuleList(torch.nn.Linear(9, 1) for _ in range(3))

    def losses(self, step):
        generator = torch.Generator().manual_seed(step)
        inputs = torch.randn(4, 6, generator=generator).to(DEVICE)
        hidden = self.trunk(inputs)
        return [(head(hidden) - task).square().mean() for task, head in enumerate(self.heads)]


def trained(granularity, fused, dtype=None):
    model = Model().to(DEVICE)
    base = torch.optim.SGD(model.parameters(), lr=0.05)
    optimizer = PCGrad(base, granularity=granularity, fused=fused, buffer_dtype=dtype)
    for step in range(6):
        optimizer.zero_grad()
        optimizer.backward(model.losses(step))
        optimizer.step()
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


@pytest.mark.parametrize("granularity", ["model", "group", "tensor"])
def case_training_is_the_same(granularity):
    assert kernels.choose(True, torch.device(DEVICE)) is fused
    expected = trained(granularity, fused=False)
    torch.testing.assert_close(trained(granularity, fused=True), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("fused_or_not", [True, False])
def case_the_wrapper_projects_with_the_kernels_it_is_given(monkeypatch, fused_or_not):
    calls = []
    project = projection.project

    def counted(gram, order):
        calls.append(gram.shape)
        return project(gram, order)

    monkeypatch.setattr(projection, "project", counted)
    trained("model", fused=fused_or_not)
    assert calls == [(1, 3, 3)] * (6 if fused_or_not else 0)


@pytest.mark.parametrize("num_tasks", [1, 2, 3, 5, 8, 16])
def case_rotations_find_the_eigenvalues(num_tasks):
    grads = [gradients(num_tasks, 2 * num_tasks + 1, torch.float64, seed=s) for s in range(3)]
    grads[1][-1] = grads[1][0]  # a rank lower
    grams = torch.stack([reference.gram_matrix(rows) for rows in grads])
    scales = torch.tensor([1.0, 1e-200, 1e200], dtype=torch.float64, device=DEVICE)
    grams = grams * scales.view(3, 1, 1)
    expected = torch.linalg.eigvalsh(grams)
    unit = expected[:, -1:]
    for some, shape in ((grams, ()), (grams.mT.unsqueeze(0), (1,))):
        values, vectors = spectrum(some, fused=True)
        assert (values.shape, vectors.shape) == ((*shape, 3, num_tasks), some.shape)
        values, vectors = values.view_as(expected), vectors.view_as(grams)
        torch.testing.assert_close(values.sort().values / unit, expected / unit, rtol=0, atol=1e-13)
        eye = torch.eye(num_tasks, dtype=torch.float64, device=DEVICE).expand(grams.shape)
        torch.testing.assert_close(vectors.mT @ vectors, eye, rtol=0, atol=1e-13)
        back = vectors @ torch.diag_embed(values) @ vectors.mT / unit.unsqueeze(-1)
        torch.testing.assert_close(back, grams / unit.unsqueeze(-1), rtol=0, atol=1e-13)
    assert spectrum(grams[:0], fused=True)[1].shape == (0, num_tasks, num_tasks)


@pytest.mark.parametrize("scale", ["min", "median", "rmse"])
def case_aligned_gradients_are_those_of_rotations_on_tensors(scale):
    gram = reference.gram_matrix(gradients(5, 11, torch.float64))
    expected = aligned_mtl_weights(gram, scale, fixed=True)
    found = aligned_mtl_weights(gram, scale, fused=True)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    gram[0, 1] = gram[1, 0] = torch.nan
    assert aligned_mtl_weights(gram, scale, fused=True).isnan().all()


@pytest.mark.parametrize("num_tasks", [1, 2, 3, 8])
def case_aligned_gradients_take_few_launches(num_tasks, monkeypatch):
    gram = reference.gram_matrix(gradients(num_tasks, 20, torch.float64))
    aligned_mtl_weights(gram, fused=True)  # constants are made once
    rotate, calls = rotations.rotate, []

    def counted(*arguments):
        calls.append(arguments)
        with _disable_current_modes():  # the interpreter's own operations
            return rotate(*arguments)

    monkeypatch.setattr(rotations, "rotate", counted)
    with Launches() as launched:
        aligned_mtl_weights(gram, fused=True)
    assert len(calls) == 1
    assert len(launched.names) <= 30
    assert not [name for name in launched.names if name in READS]


@pytest.mark.skipif(INTERPRETED, reason="a GPU's business")
def case_no_synchronisation_and_graph_capture():
    grads, bounds = gradients(3, 100_003), [0, 50_000, 100_003]
    order = projection_order(3, seed=0, step=0, device=DEVICE)

    def surgery():
        grams = fused.gram_matrices(grads, bounds)
        fused.combine_segments(weights_of(grams, order), grads, bounds, grads[0])

    torch.cuda.set_sync_debug_mode("error")
    try:
        surgery()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        surgery()
    for seed in (1, 2):
        fresh = gradients(3, 100_003, seed=seed)
        grads.copy_(fresh)
        graph.replay()
        grams = fused.gram_matrices(fresh, bounds)
        weights = weights_of(grams, order)
        expected = fused.combine_segments(weights, fresh, bounds, torch.zeros_like(fresh[0]))
        assert torch.equal(grads[0], expected)


@pytest.mark.skipif(INTERPRETED, reason="takes 12 GB")
def case_rows_beyond_32_bits():
    grads = torch.ones(3, 2**31 + 3, dtype=torch.bfloat16, device=DEVICE)
    assert (fused.gram_matrix(grads) == 2**31 + 3).all()
    assert (fused.combine(torch.ones(3, device=DEVICE), grads, out=grads[2]) == 3).all()


class Compiler:
    """Stands in for a kernel: compiles it for a GPU as Triton would for a call's arguments."""

    def __init__(self, kernel, capability):
        self.kernel = kernel
        self.capability = capability
        self.assembly = ""

    def __getitem__(self, grid):
        return self.compile

    def compile(self, *args, num_warps, **constants):
        names = self.kernel.arg_names
        signature, constexprs, attributes = {}, dict(constants), {}
        for place, (name, value) in enumerate(zip(names, args, strict=False)):
            if value is None or (isinstance(value, int) and value == 1):
                constexprs[name] = value
            elif isinstance(value, int):
                signature[name] = "i32" if value < 2**31 else "i64"
            else:
                signature[name] = "*" + TRITON_NAMES[value.dtype]
            if name in signature and (signature[name][0] == "*" or value % 16 == 0):
                attributes[(place,)] = [["tt.divisibility", 16]]
        signature = {name: signature.get(name, "constexpr") for name in names}
        source = triton.compiler.ASTSource(self.kernel, signature, constexprs, attributes)
        target = triton.backends.compiler.GPUTarget("cuda", self.capability, 32)
        compiled = triton.compile(source, target=target, options={"num_warps": num_warps})
        self.assembly += compiled.asm["ptx"]


TRITON_NAMES = {
    torch.float32: "fp32",
    torch.float64: "fp64",
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
    torch.int64: "i64",
}


KERNELS = [
    (products, "_sum_products"),
    (products, "_add_partials"),
    (sums, "_sum_rows"),
    (projection, "_project"),
    (rotations, "_rotate"),
]


def compiling(monkeypatch, capability):
    """Replaces every kernel by its compiler."""
    compilers = {}
    for module, name in KERNELS:
        compilers[name] = Compiler(getattr(module, name), capability)
        monkeypatch.setattr(module, name, compilers[name])
    return compilers


@pytest.mark.skipif(INTERPRETED, reason="needs the compiler")
@pytest.mark.parametrize("capability", [80, 90])
def test_compiles(capability, monkeypatch, tmp_path):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    compilers = compiling(monkeypatch, capability)
    problems = [(1, 1, torch.float32, [0, 1]), (3, 4096, torch.bfloat16, [0, 4096])]
    problems += [(3, 4099, torch.float32, [0, 17, 4099])]
    if capability == 90:
        problems += [(8, 4096, torch.float16, [0, 4096]), (11, 4096, torch.float64, [0, 4096])]
    for num_tasks, num_params, dtype, bounds in problems:
        grads = torch.zeros(num_tasks, num_params, dtype=dtype)
        weights = torch.ones(len(bounds) - 1, num_tasks, dtype=torch.float64)
        fused.gram_matrices(grads, bounds)
        fused.combine_segments(weights, grads, bounds, grads[0])
    gram = torch.eye(40, dtype=torch.float64)
    weights_of(gram, projection_order(40, seed=0, step=0))
    for num_tasks in (3, 16):
        aligned_mtl_weights(gram[:num_tasks, :num_tasks], fused=True)
    for compiler in compilers.values():
        assert compiler.assembly
        for unwanted in ("\tatom.", "\tred.", "tf32", "mma.sync"):
            assert unwanted not in compiler.assembly
    assert "cvt.rn.bf16" in compilers["_sum_rows"].assembly
    assert "ld.global.v4" in compilers["_sum_rows"].assembly
    assert "cp.async" in compilers["_sum_products"].assembly


@pytest.mark.skipif(INTERPRETED, reason="needs the compiler")
@pytest.mark.parametrize("in_buffer", [True, False])
def test_rows_of_the_buffer_are_read_several_numbers_at_once(in_buffer, monkeypatch, tmp_path):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    compilers = compiling(monkeypatch, 90)
    grads = torch.zeros(3, 4099)
    if in_buffer:
        buffer, parameter = GradientBuffer(), torch.nn.Parameter(torch.zeros(4099))
        for _ in range(2):  # the first step lays out the rows
            buffer.clear()
            for task in range(3):
                buffer.capture(task, [(parameter, grads[task])], copy=True)
        (rows,) = buffer._layout.row_sets
        grads = rows.matrix
    assert grads.shape == (3, 4099)
    fused.gram_matrix(grads)
    fused.combine(torch.ones(3), grads, grads[0])
    assert ("ld.global.v4" in compilers["_sum_rows"].assembly) == in_buffer
    sixteen_bytes = re.search(
        r"cp\.async\.c[ag]\.shared\.global .*0x10", compilers["_sum_products"].assembly
    )
    assert (sixteen_bytes is not None) == in_buffer
