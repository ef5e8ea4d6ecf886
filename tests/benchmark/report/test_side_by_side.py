"""Examples won and lost by made-up predictions against those that were put in."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.multitask_bert.report.side_by_side import compare_examples
from benchmarks.multitask_bert.significance import sign_test
from tests.benchmark.claims.made_up_seeds import CJ, CJ_GS, write_run
from tests.benchmark.report.read_tables import tables_of

SIZES = {"sst": 20, "quora": 20, "sts": 20}


def write_answers(root: Path, id: str, seed: int, wrong: set[int], shift: float = 0.0) -> None:
    """Make up a run with some classes wrong, and scores off by ``shift`` in the first ten."""
    sst = [(f"s{i}", float((i % 2 + (i in wrong)) % 5), float(i % 2)) for i in range(20)]
    sts = [(f"t{i}", i / 4 + (shift if i < 10 else 0.25), i / 4) for i in range(20)]
    write_run(root, id, seed, predictions={"sst": sst, "sts": sts}, sizes=SIZES)


def test_examples_are_won_and_lost(tmp_path: Path) -> None:
    # The first seed wins eight examples and loses one; the second neither.
    write_answers(tmp_path, CJ_GS, 0, wrong={8}, shift=0.1)
    write_answers(tmp_path, CJ, 0, wrong=set(range(8)), shift=0.5)
    for id in (CJ_GS, CJ):
        write_answers(tmp_path, id, 1, wrong={3}, shift=0.5)
    found = compare_examples([tmp_path])
    p = sign_test(8, 1).text
    assert p == "0.039"
    assert found.summary == (
        f"PCGrad less loss sum ({CJ_GS}), example by example over 2 seeds alone: SST 8 better, "
        f"1 worse (p {p}: better); STS 10 better, 0 worse (p {sign_test(10, 0).text}: better)",
    )
    sst, sts = tables_of(found.markdown)
    assert [list(row.values()) for row in sst] == [
        ["0", "20", "8", "1", "11", p, "better"],
        ["1", "20", "0", "0", "20", "1.000", "too few to tell"],
        ["all together", "20", "8", "1", "11", p, "better"],
    ]
    assert list(sts[0].values())[:5] == ["0", "20", "10", "0", "10"]
    assert "<summary>SST: gained by the first: 5 of 8</summary>" in found.markdown
    assert "    label 0, first 1, 0, second 0, 0, id s8" in found.markdown
    assert found.page == tmp_path / "comparison.html"
    assert "The texts are not at hand" in found.page.read_text(encoding="utf-8")


def test_chance_is_no_difference(tmp_path: Path) -> None:
    for seed in range(2):
        write_answers(tmp_path, CJ_GS, seed, wrong={0, 1, 2, 3, 4})
        write_answers(tmp_path, CJ, seed, wrong={5, 6, 7, 8, 9, 10})
    (line,) = compare_examples([tmp_path]).summary
    assert "SST 6 better, 5 worse (p 1.000: within noise)" in line


@pytest.mark.parametrize("change", ["other seeds", "no predictions", "alone"])
def test_nothing_is_compared_that_is_no_pair(tmp_path: Path, change: str) -> None:
    write_answers(tmp_path, CJ_GS, 0, wrong={1})
    if change == "other seeds":
        write_answers(tmp_path, CJ, 1, wrong={2})
    elif change == "no predictions":
        write_run(tmp_path, CJ, 0, sizes=SIZES)
    found = compare_examples([tmp_path])
    assert (found.summary, found.page) == ((), None)
    assert not (tmp_path / "comparison.html").exists()
