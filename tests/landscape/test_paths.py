"""Trails over the landscape against float64 loops of plain torch; its pictures by the command."""

from __future__ import annotations

import math
import re

import pytest
import torch
from PIL import Image

import gradsurgery
from benchmarks.landscape import paths
from benchmarks.landscape.__main__ import main
from benchmarks.landscape.page import section
from benchmarks.landscape.paths import (
    ARROWS,
    CROSSINGS,
    HEIGHTS,
    STARTS,
    Trail,
    follow,
    losses,
    titles,
    update_of,
)
from benchmarks.multitask_bert.methods import METHODS
from tests.paths import ROOT


def by_hand(combine, start, num_steps):
    """Adam on a combination of both gradients, without the library."""
    point = torch.tensor(start, dtype=torch.float64, requires_grad=True)
    adam = torch.optim.Adam([point], lr=paths.LR)
    for _ in range(num_steps):
        grads = [torch.autograd.grad(loss, point, retain_graph=True)[0] for loss in losses(point)]
        point.grad = combine(*grads)
        adam.step()
    return tuple(point.tolist())


def project(a, b):
    """Two tasks have one order."""
    product = torch.dot(a, b)
    if product >= 0:
        return a + b
    return a - product / b.dot(b) * b + b - product / a.dot(a) * a


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize(
    ("name", "combine"), [("loss-sum", lambda a, b: a + b), ("pcgrad", project)]
)
def test_a_path_is_that_of_a_plain_loop(name, combine, start):
    path = follow(name, start, 60)
    assert len(path.points) == 61
    assert path.points[-1] == pytest.approx(by_hand(combine, start, 60), abs=1e-6)  # walls amplify


def test_both_losses_are_least_where_the_valleys_cross():
    for crossing in CROSSINGS:
        point = torch.tensor(crossing, dtype=torch.float64, requires_grad=True)
        found = losses(point)
        assert [float(loss.detach()) for loss in found] == pytest.approx(
            [0.05 * height for height in HEIGHTS], abs=1e-12
        )
        for loss in found:
            (grad,) = torch.autograd.grad(loss, point, retain_graph=True)
            assert grad.norm() < 1e-9
    everywhere = 8 * torch.rand(2, 1000, generator=torch.Generator().manual_seed(0)) - 4
    for loss, height in zip(losses(everywhere), HEIGHTS, strict=True):
        assert loss.min() >= 0.05 * height


def test_where_the_sum_and_pcgrad_end():
    """As measured: from one start the sum stays in a valley, and PCGrad reaches a crossing."""
    stays, reaches = (follow(name, STARTS[0]) for name in ("loss-sum", "pcgrad"))
    assert stays.distance > 1
    assert stays.losses[1] == pytest.approx(0.3, abs=0.01)
    assert stays.losses[0] > 2
    assert reaches.distance < 0.01


def test_every_method_of_the_table_has_a_path():
    assert set(titles()) == set(METHODS) - {"none"}


@pytest.mark.parametrize("name", titles())
def test_every_method_moves(name):
    start = STARTS[1]
    path = follow(name, start, 20)
    assert all(map(math.isfinite, path.points[-1]))
    assert 0.02 < math.dist(start, path.points[-1]) < 1  # Adam's step is about its lr


@pytest.mark.parametrize(
    ("name", "weigh"),
    [
        ("mgda", gradsurgery.mgda_weights),
        ("upgrad", gradsurgery.upgrad_weights),
        ("cagrad", gradsurgery.cagrad_weights),
        ("config", gradsurgery.config_weights),
        ("loss-sum", lambda gram: torch.ones_like(gram[0])),
    ],
)
@pytest.mark.parametrize("group", ARROWS)
def test_an_arrow_is_the_weights_times_the_arrows(name, weigh, group):
    rows = torch.tensor(ARROWS[group], dtype=torch.float64)
    expected = weigh(rows @ rows.mT) @ rows
    assert update_of(name, ARROWS[group]) == pytest.approx(expected.tolist(), abs=1e-8)


def written():
    """The sections of the page, as it stands in the documentation."""
    text = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
    return re.split("^(?=## )", text, flags=re.MULTILINE)[3:]


def test_the_page_is_what_the_command_writes():
    """Remedy: `python -m benchmarks.landscape --out docs/static --page docs/methods.md`."""
    nowhere = [Trail([start], (1.0, 1.0)) for start in STARTS]

    def unmeasured(part):
        return re.sub(r"from \d of", "from 0 of", part).strip()

    expected = [section(name, nowhere).strip() for name in titles()]
    assert [unmeasured(part) for part in written()] == expected


@pytest.mark.parametrize("name", titles())
def test_a_section_has_an_equation_a_picture_and_a_source(name):
    part = section(name, [Trail([(0.0, 0.0)], (0.05, 0.3))])
    assert "$$" in part
    assert f"static/methods/{name}.png" in part
    assert "at a crossing from 1 of 1 starts" in part
    assert name == "loss-sum" or re.search("^Sources?: ", part, re.MULTILINE)
    assert not re.search(r":\w+:`|\.\. math|``", part)


def test_the_command(tmp_path, capsys, monkeypatch):
    made = tmp_path / "methods.md"
    few = {name: titles()[name] for name in ("loss-sum", "pcgrad", "mgda", "upgrad", "nash-mtl")}
    monkeypatch.setattr("benchmarks.landscape.__main__.titles", lambda: few)
    monkeypatch.setattr("benchmarks.landscape.page.titles", lambda: few)
    assert main(["--steps", "3", "--out", str(tmp_path), "--page", str(made)]) == 0
    said = capsys.readouterr().out
    assert all(f"| {title} " in said for title in few.values())
    headings = re.findall("^## (.*)", made.read_text(encoding="utf-8"), re.MULTILINE)
    assert [each.lower() for each in headings[2:]] == [title.lower() for title in few.values()]
    for name in ("landscape", "landscapes", "arrows", "methods/pcgrad"):
        with Image.open(tmp_path / f"{name}.png") as image:
            assert image.width > 800
            assert image.convert("RGBA").getpixel((0, 0))[3] == 0  # on nothing
    assert main(["--steps", "0"]) == 2
    assert "steps: must be at least 1" in capsys.readouterr().err
