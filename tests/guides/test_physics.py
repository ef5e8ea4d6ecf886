"""The physics-informed network against the exact solution, and its two ways against each other."""

import math

import torch
from torch import nn

from tests.guides.guide import assert_close, run

GUIDE = "physics.md"
LOOP = "The heat equation"
AT_ONCE = "All gradients at once"


def network():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Linear(2, 12), nn.Tanh(), nn.Linear(12, 12), nn.Tanh(), nn.Linear(12, 1)
        ).double()


def points():
    generator = torch.Generator().manual_seed(0)
    x, t = torch.rand(2, 60, generator=generator, dtype=torch.float64)
    side = (torch.arange(20) % 2).double()
    return {
        "inside": torch.stack([x, t], -1),
        "boundary": torch.stack([side, t[:20]], -1),
        "start": torch.stack([x[:20], torch.zeros(20, dtype=torch.float64)], -1),
    }


def distance(net):
    """Root of the mean square of the distance from the solution, over a grid."""
    line = torch.linspace(0, 1, 11, dtype=torch.float64)
    grid = torch.cartesian_prod(line, line)
    exact = torch.sin(math.pi * grid[:, 0]) * torch.exp(-0.1 * math.pi**2 * grid[:, 1])
    with torch.no_grad():
        return float((net(grid)[:, 0] - exact).square().mean().sqrt())


def test_adam_comes_near_the_solution_and_lbfgs_nearer():
    found = {}
    for num_lbfgs_steps in (0, 8):
        net = network()
        space = run(
            GUIDE, LOOP, network=net, **points(), num_adam_steps=150,
            num_lbfgs_steps=num_lbfgs_steps,
        )  # fmt: skip
        found[num_lbfgs_steps] = distance(net)
    assert distance(network()) > 0.4
    assert found[0] < 0.2
    assert found[8] < 0.5 * found[0]
    assert space["lbfgs"].diagnostics.tasks == ("equation", "boundary", "start")


def test_all_gradients_at_once_are_those_of_the_loop():
    loop, at_once = network(), network()
    run(GUIDE, LOOP, network=loop, **points(), num_adam_steps=10, num_lbfgs_steps=0)
    run(GUIDE, AT_ONCE, network=at_once, **points(), num_adam_steps=10)
    assert_close(at_once, loop, 1e-8)
