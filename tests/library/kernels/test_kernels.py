"""The chooser of kernels against what it promises: the best there is, or a refusal."""

import subprocess
import sys

import pytest
import torch

from gradsurgery import LossSum, MultiTaskOptimizer, PCGrad, WeightedSum, kernels
from gradsurgery.kernels import blocked, reference
from gradsurgery.method import Seen
from gradsurgery.methods.pcgrad import PCGradMethod, pcgrad_coefficients

NAMES = ("gram_matrix", "combine", "gram_matrices", "combine_segments")
CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def gpu(monkeypatch):
    """Makes torch and the chooser believe in a GPU; a dict to describe it otherwise."""
    found = {"capability": (9, 0), "compiler": "/usr/bin/gcc"}
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: found["capability"])
    monkeypatch.setattr(kernels.shutil, "which", lambda _: found["compiler"])
    return found


@pytest.fixture
def no_triton(monkeypatch):
    """Lets every import of Triton fail."""
    monkeypatch.setitem(sys.modules, "triton", None)
    for name in [name for name in sys.modules if name.startswith("gradsurgery.kernels.fused")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr(kernels, "fused", raising=False)
    kernels._fused_kernels.cache_clear()
    yield
    kernels._fused_kernels.cache_clear()


def refusal(*devices):
    with pytest.raises(ValueError, match=r"^fused: must be None or False where ") as refused:
        kernels.choose(True, *devices)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_blocked_on_cpus():
    assert kernels.choose(None, CPU) is blocked
    assert kernels.choose(None, CPU, CPU) is blocked


@pytest.mark.parametrize("devices", [(), (torch.device("meta"),), (CPU, CUDA)])
def test_reference_where_nothing_else_can(devices):
    assert kernels.choose(None, *devices) is reference


@pytest.mark.parametrize("devices", [(), (CPU,), (CUDA,)])
def test_reference_on_demand(devices, gpu):
    assert kernels.choose(False, *devices) is reference
    assert kernels.choose(fused=False) is reference


def test_reference_without_arguments():
    assert kernels.choose() is reference


@pytest.mark.parametrize("fused", [None, True])
def test_fused_on_cuda(fused, gpu):
    pytest.importorskip("triton")
    chosen = kernels.choose(fused, CUDA, torch.device("cuda", 1))
    assert chosen.__name__ == "gradsurgery.kernels.fused"
    for name in NAMES:
        assert all(hasattr(module, name) for module in (chosen, reference, blocked)), name


def test_fused_may_be_possible_where_there_is_a_gpu(gpu):
    pytest.importorskip("triton")
    assert kernels.choose(True).__name__ == "gradsurgery.kernels.fused"


@pytest.mark.usefixtures("no_triton")
def test_without_triton(gpu):
    assert kernels.choose(None, CUDA) is reference
    assert "Triton cannot be imported" in refusal(CUDA)
    assert "Triton cannot be imported" in refusal()


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [("capability", (7, 5), "compute capability"), ("compiler", None, "C compiler")],
)
def test_a_gpu_that_triton_cannot_use(gpu, key, value, reason):
    pytest.importorskip("triton")
    gpu[key] = value
    assert kernels.choose(None, CUDA) is reference
    assert reason in refusal(CUDA)


def test_gradients_elsewhere_than_on_cuda(gpu):
    pytest.importorskip("triton")
    assert "gradients are on cpu" in refusal(CPU)
    assert "gradients are on cpu" in refusal(CUDA, CPU)
    assert "gradients are on meta" in refusal(torch.device("meta"))


def test_without_any_gpu(monkeypatch):
    pytest.importorskip("triton")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "there is no CUDA device" in refusal()


@pytest.mark.parametrize(
    "make",
    [
        lambda base: PCGrad(base, fused=True),
        lambda base: LossSum(base, monitor=True, fused=True),
        lambda base: WeightedSum(base, [1.0, 2.0], monitor=True, fused=True),
        lambda base: MultiTaskOptimizer(base, torch.diagonal, fused=True),
    ],
    ids=["pcgrad", "loss-sum", "weighted-sum", "custom"],
)
def test_every_wrapper_refuses_before_training_begins(make, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    parameter = torch.nn.Parameter(torch.ones(2))
    with pytest.raises(ValueError, match="fused"):
        make(torch.optim.SGD([parameter], lr=0.1))


@pytest.mark.parametrize("is_fused", [True, False])
def test_the_projection_is_fused_where_the_kernels_are(is_fused, monkeypatch):
    pytest.importorskip("triton")
    from gradsurgery.kernels.fused import projection

    projected = []

    def project(gram, order):
        projected.append(gram)
        return pcgrad_coefficients(gram, order)

    monkeypatch.setattr(projection, "project", project)
    gram = torch.tensor([[[1.0, -1.0], [-1.0, 2.0]]])
    seen = Seen(gram, None, (0, 1), ("a", "b"), seed=0, step=0, fused=is_fused)
    assert PCGradMethod().weights(seen).tolist() == [[[1.0, 0.5], [1.0, 1.0]]]
    assert len(projected) == is_fused


def test_surgery_refuses_gradients_that_triton_cannot_reach(gpu):
    parameter = torch.nn.Parameter(torch.ones(2))
    optimizer = PCGrad(torch.optim.SGD([parameter], lr=0.1), fused=True)
    with pytest.raises(ValueError, match="gradients are on cpu"):
        optimizer.backward([parameter.sum(), -parameter.sum()])


def test_triton_is_imported_by_nobody_who_does_not_want_it():
    code = (
        "import sys, torch\n"
        "before = 'triton' in sys.modules\n"
        "import gradsurgery\n"
        "assert ('triton' in sys.modules) == before\n"
        "p = torch.nn.Parameter(torch.ones(2))\n"
        "o = gradsurgery.PCGrad(torch.optim.SGD([p], lr=0.1))\n"
        "o.backward([p.sum(), -p.sum()])\n"
        "assert 'gradsurgery.kernels.fused' not in sys.modules"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
