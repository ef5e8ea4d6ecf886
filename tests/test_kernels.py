"""The chooser of kernels against what it promises: the reference, or a refusal."""

import pytest
import torch

from gradsurgery import LossSum, MultiTaskOptimizer, PCGrad, WeightedSum, kernels
from gradsurgery.kernels import reference


@pytest.mark.parametrize("fused", [None, False])
def test_reference_by_default_and_on_demand(fused):
    assert kernels.choose(fused) is reference
    assert kernels.choose(fused=fused).gram_matrix is reference.gram_matrix
    assert kernels.choose(fused=fused).combine is reference.combine


def test_reference_without_arguments():
    assert kernels.choose() is reference


def test_fused_is_refused_in_one_line():
    with pytest.raises(ValueError, match="fused") as refusal:
        kernels.choose(fused=True)
    assert "\n" not in str(refusal.value)


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
def test_every_wrapper_refuses_before_training_begins(make):
    parameter = torch.nn.Parameter(torch.ones(2))
    with pytest.raises(ValueError, match="fused"):
        make(torch.optim.SGD([parameter], lr=0.1))
