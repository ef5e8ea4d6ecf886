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


def test_a_block_after_grad_was_read_is_warned_of():
    model = ThreeTasks()
    optimizer = PCGrad(torch.optim.SGD(model.parameters(), lr=0.1))
    with optimizer.task("a"):
        model.loss("a", batch_of("a", 0)).backward()
    assert optimizer.diagnostics.num_surgeries == 0
    assert any(p.grad.any() for p in model.parameters() if p.grad is not None)
    assert optimizer.diagnostics.num_surgeries == 1
    with (
        pytest.warns(UserWarning, match=r"before the block of task 'b'.* after the step's last"),
        optimizer.task("b"),
    ):
        model.loss("b", batch_of("b", 0)).backward()


@pytest.mark.parametrize("owner", ["optimizer", "model"])
def test_gradients_that_are_kept_apart_are_dropped(owner):
    model = ThreeTasks()
    optimizer = PCGrad(torch.optim.SGD(model.parameters(), lr=0.1))
    with optimizer.task("a"):
        model.loss("a", batch_of("a", 0)).backward()
    {"optimizer": optimizer, "model": model}[owner].zero_grad()
    optimizer.surgery()
    assert all(parameter.grad is None for parameter in model.parameters())


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
