"""The actor-critic loop and the loop with heads, by `take`, against blocks by hand."""

import copy

import pytest
import torch
from torch import nn

from gradsurgery import DBMTL, PCGrad
from tests.guides.guide import assert_close, run

GUIDE = "reinforcement.md"
ACTOR = "An actor and its critic"
HEADS = "Tasks with heads of their own"
NUM_TASKS, SIZE = 4, 6


def network(num_inputs, num_outputs, seed):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers = nn.Linear(num_inputs, 8), nn.Tanh(), nn.Linear(8, num_outputs)
        return nn.Sequential(*layers).double()


def actor():
    return network(2 + NUM_TASKS, 1, seed=1)


def critic():
    return network(2 + NUM_TASKS + 1, 1, seed=2)


def replay(num_steps):
    """Transitions of a mass on a line: each task wants it to go its own way."""
    generator = torch.Generator().manual_seed(0)
    one_hot = torch.eye(NUM_TASKS, dtype=torch.float64)[:, None].expand(-1, SIZE, -1)
    goals = torch.linspace(-1, 1, NUM_TASKS, dtype=torch.float64)[:, None, None]
    for _ in range(num_steps):
        shape = NUM_TASKS, SIZE, 1
        place, speed = (
            torch.randn(*shape, generator=generator, dtype=torch.float64) for _ in range(2)
        )
        action = torch.rand(*shape, generator=generator, dtype=torch.float64) * 2 - 1
        following = place + 0.1 * speed, speed + 0.1 * action
        yield (
            torch.cat([place, speed, one_hot], -1),
            action,
            3 * goals * (1 + following[0]),
            torch.cat([*following, one_hot], -1),
        )


def train_in_blocks(num_steps, of_critic):
    """The loop with one backward for each task, without torch.func."""
    networks = {"actor": actor(), "critic": critic()}
    targets = copy.deepcopy(networks)
    optimizers = {
        name: method(torch.optim.Adam(networks[name].parameters(), lr=3e-3))
        for name, method in {"critic": of_critic, "actor": PCGrad}.items()
    }

    def judge(nets, observation, action):
        return nets["critic"](torch.cat([observation, action], -1))

    for observation, action, reward, following in replay(num_steps):
        with torch.no_grad():
            wanted = reward + 0.9 * judge(targets, following, targets["actor"](following).tanh())
        for name in ("critic", "actor"):
            optimizer = optimizers[name]
            optimizer.zero_grad()
            for task in range(NUM_TASKS):
                if name == "critic":
                    found = judge(networks, observation[task], action[task])
                    loss = (found - wanted[task]).square().mean()
                else:
                    own = networks["actor"](observation[task]).tanh()
                    loss = -judge(networks, observation[task], own).mean()
                with optimizer.task(task) as block:
                    block.backward(loss)
            optimizer.step()
        with torch.no_grad():
            for name, net in networks.items():
                for p, average in zip(net.parameters(), targets[name].parameters(), strict=True):
                    average.copy_(average + 0.05 * (p - average))
    return networks, targets


@pytest.mark.parametrize("method", [PCGrad, DBMTL])
def test_the_loop_is_the_one_in_blocks(method):
    edits = {"critic_optimizer = PCGrad(": f"critic_optimizer = {method.__name__}("}
    names = {"actor": actor(), "critic": critic(), "replay": replay(10), "DBMTL": DBMTL}
    space = run(GUIDE, ACTOR, edits=edits, **names)
    assert isinstance(space["critic_optimizer"], method)
    networks, targets = train_in_blocks(10, method)
    for name, net in networks.items():
        assert_close(names[name], net, 1e-9)
        assert_close(space["targets"][name], targets[name], 1e-9)
    assert space["critic_optimizer"].diagnostics.conflict_rate.max() > 0
    for name, start in (("actor", actor()), ("critic", critic())):
        assert not torch.equal(names[name][0].weight, start[0].weight)


def test_it_learns():
    """Each task's mean distance between what the critic says and what is wanted goes down."""
    names = {"actor": actor(), "critic": critic(), "replay": replay(300)}
    space = run(GUIDE, ACTOR, **names)
    (observation, action, reward, following), *_ = replay(1)
    targets = space["targets"]

    def error(net):
        with torch.no_grad():
            next_action = targets["actor"](following).tanh()
            wanted = reward + 0.9 * targets["critic"](torch.cat([following, next_action], -1))
            found = net(torch.cat([observation, action], -1))
        return (found - wanted).square().mean((1, 2))

    assert (error(names["critic"]) < 0.7 * error(critic())).all()


class Heads(nn.Module):
    def __init__(self):
        super().__init__()
        self.trunk = network(3, 5, seed=3)
        self.heads = nn.ModuleList(network(5, 1, seed=4 + task) for task in range(NUM_TASKS))

    def forward(self, observation):
        features = self.trunk(observation)
        return torch.cat([head(features) for head in self.heads], -1)


def test_heads_keep_their_plain_gradient():
    generator = torch.Generator().manual_seed(5)
    batches = [
        (
            torch.randn(NUM_TASKS, SIZE, 3, generator=generator, dtype=torch.float64),
            torch.randn(NUM_TASKS, SIZE, 1, generator=generator, dtype=torch.float64),
        )
        for _ in range(5)
    ]
    taking, blocks = Heads(), Heads()
    space = run(GUIDE, HEADS, network=taking, batches=batches)
    optimizer = PCGrad(torch.optim.Adam(blocks.parameters(), lr=3e-3))
    for observation, wanted in batches:
        optimizer.zero_grad()
        for task, head in enumerate(blocks.heads):
            with optimizer.task(task):
                found = head(blocks.trunk(observation[task]))
                (found - wanted[task]).square().mean().backward()
        optimizer.step()
    assert space["optimizer"].diagnostics.num_surgeries == len(batches)
    assert_close(taking, blocks, 1e-9)
