"""Claims about logged gradients against numbers put into the logs."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from tests.benchmark.claims.made_up_seeds import CJ, CJ_GS, estimates, finding, write_run


@pytest.mark.parametrize(
    ("size", "verdict"), [(0.02, "supported"), (0.3, "contradicted"), (0.1, "inconclusive")]
)
def test_orthogonality_is_judged_by_the_pair_with_the_largest_cosine(
    size: float, verdict: str, tmp_path: Path
) -> None:
    train = [
        {
            "cosines": {"sst~quora": 0.0, "sts~sst": 0.01, "quora~sts": sign * size + shift},
            "layer_cosines": {"embeddings": {"sst~quora": -0.7}, "pooler": {"sst~quora": 0.1}},
        }
        for sign, shift in ((1, 0.01), (-1, 0.01)) * 10
    ]
    for seed in range(2):
        write_run(tmp_path, CJ, seed, train=train)
    found = finding(tmp_path, "C6")
    assert found.verdict == verdict
    assert estimates(found.evidence)[0][0] == pytest.approx(size)
    assert "|cosine| of Quora and STS" in found.evidence
    assert "largest of its layers 0.700, embeddings, SST and Quora" in found.evidence


@pytest.mark.parametrize(("kept", "verdict"), [(0.2, "supported"), (0.98, "contradicted")])
def test_what_the_projection_leaves_of_a_gradient(
    kept: float, verdict: str, tmp_path: Path
) -> None:
    train = [
        {"norms": {"sst": 1.0, "sts": 4.0}, "norms_after": {"sst": 1.0, "sts": 4.0 * kept}}
    ] * 3
    for seed in range(2):
        write_run(tmp_path, CJ_GS, seed, train=train)
    found = finding(tmp_path, "C7")
    assert found.verdict == verdict
    assert f"at least {kept:.3f} at every logged step" in found.evidence


def test_seeds_that_disagree_about_a_logged_number(tmp_path: Path) -> None:
    for seed, kept in enumerate((0.1, 0.7)):
        train = [{"norms": {"sts": 4.0}, "norms_after": {"sts": 4.0 * kept}}] * 3
        write_run(tmp_path, CJ_GS, seed, train=train)
    found = finding(tmp_path, "C7")
    assert found.verdict == "inconclusive"
    assert estimates(found.evidence) == [(0.4, 0.3)]


def test_older_runs_have_no_norms(tmp_path: Path) -> None:
    write_run(tmp_path, CJ_GS, train=[{"cosines": {"sst~sts": 0.1}, "norm_after": 2.0}])
    found = finding(tmp_path, "C7")
    assert found.verdict == "not tested"
    assert "no norms after the projection on record" in found.evidence


@pytest.mark.parametrize(
    ("rate", "verdict"), [(0.3, "supported"), (0.7, "contradicted"), (0.5, "inconclusive")]
)
def test_conflicts_of_two_heads(rate: float, verdict: str, tmp_path: Path) -> None:
    def train(value: float) -> list[dict[str, Any]]:
        rates = {"sst~quora": 0.9, "sst~sts": value, "quora~sts": value}
        return [{"conflict_rate": dict.fromkeys(rates, 0.0)}, {"conflict_rate": rates}]

    for seed in range(2):
        write_run(tmp_path, "chada-jolly/cs", seed, train=train(rate))
        write_run(tmp_path, CJ, seed, train=train(0.5))
    found = finding(tmp_path, "C8")
    assert found.verdict == verdict
    ((value, error),) = estimates(found.evidence)
    assert value == pytest.approx(rate - 0.5)
    one = [r * (1 - r) / 1000 / 2 / 2 for r in (rate, 0.5)]  # two pairs of tasks, two seeds
    assert error == pytest.approx(math.sqrt(sum(one)), abs=6e-4)


@pytest.mark.parametrize(
    ("norm", "rate", "verdict"),
    [(3.0, 0.7, "supported"), (0.5, 0.7, "contradicted"), (3.0, 0.3, "contradicted")],
)
def test_a_task_that_overrules_has_the_longest_gradient_and_most_conflicts(
    norm: float, rate: float, verdict: str, tmp_path: Path
) -> None:
    rates = {"sst~quora": rate, "sst~sts": 0.5, "quora~sts": rate}
    train = [{"norms": {"sst": 1.0, "quora": norm, "sts": 2.0}, "conflict_rate": rates}] * 5
    for seed in range(2):
        write_run(tmp_path, "jiang-yu/baseline", seed, train=train)
    found = finding(tmp_path, "C9")
    assert found.verdict == verdict
    assert f"mean norms SST 1.00, Quora {norm:.2f}, STS 2.00" in found.evidence
