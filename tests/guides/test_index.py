"""The guides against themselves and the suite: every block of code is run, every link leads on."""

import re

import pytest
import torch

from gradsurgery import PCGrad
from tests.guides.guide import (
    GUIDES,
    ThreeTasks,
    assert_close,
    assert_trained,
    batch_of,
    blocks,
    losses_of,
    make_loader,
    run,
    train_by_hand,
)

NAMES = sorted(path.name for path in GUIDES.glob("*.md"))


def test_the_rules_make_a_loop_that_trains():
    """It is PCGrad by hand with clipped gradients."""
    loader = make_loader(dtype=torch.float64)
    model = ThreeTasks().double()
    run("index.md", "Rules that hold everywhere", model=model, loader=loader)
    by_hand = ThreeTasks().double()
    base = torch.optim.AdamW(by_hand.parameters(), lr=1e-3)
    train_by_hand(by_hand, base, losses_of(by_hand, loader), clip=1.0)
    assert_trained(model)
    assert_close(model, by_hand, 1e-10)


def test_the_tasks_of_these_tests_conflict_and_the_order_matters():
    loader = make_loader()
    models = []
    for seed in (0, 1):
        models.append(ThreeTasks())
        optimizer = PCGrad(torch.optim.AdamW(models[-1].parameters(), lr=1e-3), seed=seed)
        for batches in loader:
            optimizer.zero_grad()
            optimizer.backward((name, models[-1].loss(name, b)) for name, b in batches.items())
            optimizer.step()
        assert (optimizer.diagnostics.conflict_rate[[0, 0, 1], [1, 2, 2]] > 0.3).all()
    with pytest.raises(AssertionError):
        assert_close(*models, 1e-4)


def test_grad_does_not_hold_the_tasks_gradients_before_surgery():
    model = ThreeTasks()
    optimizer = PCGrad(torch.optim.SGD(model.parameters(), lr=0.1))
    with optimizer.task("a"):
        model.loss("a", batch_of("a", 0)).backward()
    found = [p.grad for p in model.parameters() if p.grad is not None]
    with pytest.warns(UserWarning, match=r"call optimizer\.surgery\(\) first"):
        assert not any(grad.any() for grad in found)
    assert len(found) == 1  # of zeros, which warns whoever reads it
    optimizer.surgery()
    assert model.trunk[0].weight.grad is not None
    optimizer.zero_grad()
    optimizer.backward({"a": model.loss("a", batch_of("a", 0))})
    assert model.trunk[0].weight.grad is not None


@pytest.mark.parametrize("owner", ["optimizer", "model"])
def test_only_the_optimizer_drops_the_gradients_that_are_kept_apart(owner):
    model = ThreeTasks()
    optimizer = PCGrad(torch.optim.SGD(model.parameters(), lr=0.1))
    with optimizer.task("a"):
        model.loss("a", batch_of("a", 0)).backward()
    {"optimizer": optimizer, "model": model}[owner].zero_grad()
    optimizer.surgery()
    assert (model.trunk[0].weight.grad is None) == (owner == "optimizer")


def test_all_guides_are_in_the_index():
    listed = re.findall(r"\]\((\w+\.md)\)", (GUIDES / "index.md").read_text(encoding="utf-8"))
    assert sorted([*listed, "index.md"]) == NAMES


@pytest.mark.parametrize("guide", NAMES)
def test_links(guide):
    text = (GUIDES / guide).read_text(encoding="utf-8")
    prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)#\s]+)", prose):
        assert "://" in target or (GUIDES / target).exists(), target


@pytest.mark.parametrize("guide", NAMES)
def test_every_block_is_run(guide):
    """The test file of the same name names the heading of each; processes of their own run all."""
    tests, stem = GUIDES.parents[1] / "tests", guide.removesuffix(".md")
    own = tests / "guides" / f"test_{stem}.py"
    if own.exists():
        source = own.read_text(encoding="utf-8")
        assert blocks(guide)
        for heading in blocks(guide):
            assert f'"{heading}"' in source, heading
    else:
        source = (tests / "library" / "distributed" / "worker.py").read_text(encoding="utf-8")
        assert f'guide("{stem}")' in source
