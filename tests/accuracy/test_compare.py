"""The table of errors through its command, and 80-digit solutions against formulas by hand."""

from __future__ import annotations

import math
import sys

import pytest
import torch

from benchmarks.accuracy import exact
from benchmarks.accuracy.__main__ import main
from benchmarks.accuracy.compare import FAMILIES, NOTHING, draw, measure
from benchmarks.accuracy.families import families
from benchmarks.accuracy.methods import ROWS, Peer, by_python, by_torch
from benchmarks.accuracy.peers import NotInstalledError, libmtl_update, torchjd_update

GOLDEN = torch.tensor([[-4.0, 1.0, 1.0], [6.0, 1.0, 1.0]], dtype=torch.float64)
ORDERS = [[1, 0], [0, 1]]


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (exact.mgda(GOLDEN), (0.6, 0.4)),
        (exact.upgrad(GOLDEN), (10 / 9, 15 / 19)),
        (exact.dualproj(GOLDEN), (11 / 18, 1 / 2)),
        (exact.cagrad(GOLDEN, 0.5), (0.704124, 0.5)),
        (exact.sdmgrad(GOLDEN), (0.6, 0.4)),
        (exact.fairgrad(GOLDEN), (0.591453, 0.407072)),
        (exact.fairgrad(GOLDEN, 2.0), (0.471405, 0.319466)),
        (exact.imtl_g(GOLDEN), (0.592338, 0.407662)),
        (exact.config(GOLDEN), (1.226506, 0.844105)),
        (exact.aligned_mtl(GOLDEN), (1.118114, 0.816522)),
        (exact.pcgrad(GOLDEN, ORDERS), (20 / 9, 30 / 19)),
        (exact.gradvac(GOLDEN, ORDERS, 0.0), (20 / 9, 30 / 19)),
        (exact.dbmtl(GOLDEN, [1.0, 2.0]), (1.0, math.sqrt(18 / 38))),
    ],
)
def test_solutions_of_two_gradients(found, expected):
    assert [float(weight) for weight in found] == pytest.approx(expected, abs=6e-5)


@pytest.mark.parametrize("seed", range(5))
def test_the_shortest_of_two(seed):
    rows = families(2, seed)["random"]
    (a, b), (_, c) = (rows @ rows.mT).tolist()
    first = min(max((c - b) / (a + c - 2 * b), 0), 1)
    assert float(exact.mgda(rows)[0]) == pytest.approx(first, rel=1e-12)
    pcgrad = [float(weight) / 2 for weight in exact.pcgrad(rows, ORDERS)]
    assert [float(weight) for weight in exact.upgrad(rows)] == pytest.approx(pcgrad, rel=1e-12)


def test_no_bargain_where_gradients_cancel():
    rows = torch.tensor([[1.0, 0.0], [-2.0, 0.0]], dtype=torch.float64)
    with pytest.raises(exact.UncertainError, match="no bargain"):
        exact.fairgrad(rows)
    assert [float(weight) for weight in exact.imtl_g(rows)] == [0, 0]


@pytest.mark.parametrize("draw_orders", [by_torch, by_python])
def test_orders_are_whole(draw_orders):
    assert all(sorted(order) == list(range(6)) for order in draw_orders(6))
    assert draw_orders(6) == draw_orders(6)


def test_a_wrong_weight_shows():
    """An error of 1 % in one weight is found as such, and none where the peer is exact."""
    row = next(row for row in ROWS if row.title == "MGDA")
    rows = families(3, 0)["random"]
    right = torch.tensor(exact.update_of(row.exact(rows, []), rows), dtype=torch.float64)
    wrong = right + 0.01 * rows.norm(dim=-1).min() * torch.eye(len(right))[0]
    assert ((wrong - right).norm() / row.unit(rows, right)).item() == pytest.approx(0.01)


def test_torchjd_is_there_and_libmtl_is_left_out(monkeypatch):
    assert torchjd_update(Peer("MGDAWeighting"), GOLDEN) == pytest.approx(
        0.6 * GOLDEN[0] + 0.4 * GOLDEN[1]
    )
    monkeypatch.setitem(sys.modules, "LibMTL", None)
    with pytest.raises(NotInstalledError):
        libmtl_update(Peer("MGDA", {"mgda_gn": "none"}), GOLDEN)


def test_errors_here_are_within_their_bounds():
    """Weights of equal angles are left out where the gradients are nearly equal or opposite."""
    errors = measure((2, 3), range(1))
    assert {row.title for row in ROWS} == {method for method, _, _ in errors}
    for (method, whose, family), found in errors.items():
        if whose != "here" or (method in ("IMTL-G", "ConFIG") and family != "random"):
            continue
        bound = 2e-5 if family in ("rank-deficient", "opposite") else 1e-8
        assert max(found) <= bound, (method, family)


def test_a_missing_answer_is_said():
    lines = draw({("CAGrad", "LibMTL", "random"): [1e-4, math.inf]})
    (line,) = [line for line in lines if "CAGrad" in line and "LibMTL" in line]
    assert "1 of 2: 1e-04 (1e-04)" in line
    assert line.count(NOTHING) == len(FAMILIES) - 1


def test_the_command(capsys):
    assert main(["--quick"]) == 0
    said = capsys.readouterr().out
    assert all(f"| {row.title} " in said for row in ROWS)
    assert "torchjd 0.18" in said
    assert "LibMTL" in said.splitlines()[-1]
    assert main(["--tasks", "1"]) == 2
    assert "tasks: must be at least 2" in capsys.readouterr().err
