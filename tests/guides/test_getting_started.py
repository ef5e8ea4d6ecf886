"""The first training run against the output that its page prints."""

from __future__ import annotations

import re

import pytest
import torch

from gradsurgery import PCGrad
from tests.guides.guide import GUIDES, blocks, run

PAGE = "../getting-started.md"
SHARED = "Clipping, and one batch for all tasks"
NUMBER = re.compile(r"\d+(?:\.\d+)?")


def test_it_prints_what_the_page_says(capsys):
    """The same words; losses to 0.1, rates to 5 %, for the rounding of other machines."""
    (expected,) = re.findall(r"^```text\n(.*?)^```", (GUIDES / PAGE).read_text(), re.M | re.S)
    assert list(blocks(PAGE)) == ["A first training run", SHARED]
    with torch.random.fork_rng(devices=[]):
        optimizer = run(PAGE, "A first training run")["optimizer"]
    printed = capsys.readouterr().out
    assert NUMBER.sub("#", printed) == NUMBER.sub("#", expected)
    for line, wanted in zip(printed.splitlines(), expected.splitlines(), strict=True):
        tolerance = 5 if "%" in line else 0.11
        found = [float(number) for number in NUMBER.findall(line)]
        assert found == pytest.approx(
            [float(number) for number in NUMBER.findall(wanted)], abs=tolerance
        )
    assert isinstance(optimizer, PCGrad)
    assert optimizer.diagnostics.num_surgeries == 301


def test_one_batch_for_all_tasks_is_clipped(capsys):
    with torch.random.fork_rng(devices=[]):
        space = run(PAGE, "A first training run")
        edits = {"parameters, 1.0": "parameters, 1e-3"}
        run(PAGE, SHARED, edits=edits, **{k: v for k, v in space.items() if k[0] != "_"})
    capsys.readouterr()
    assert space["optimizer"].diagnostics.num_surgeries == 401
    norms = torch.stack([parameter.grad.norm() for parameter in space["parameters"]])
    assert norms.norm().item() == pytest.approx(1e-3, rel=1e-3)
