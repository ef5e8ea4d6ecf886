"""Claims on tasks, losses and regularisation against runs whose numbers decide them by hand."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.benchmark.claims.made_up_seeds import finding, write_run

FINETUNED = "jiang-yu/finetune-1"
TUNED, DEFAULT, SMART = "xu/dense-tuned", "xu/dense-default", "xu/dense-tuned-smart"


def judged(root: Path, id: str, metrics: Mapping[str, tuple[float, float, float]]) -> str:
    for recipe, values in metrics.items():
        for seed in range(3):
            write_run(
                root, recipe, seed, metrics=dict(zip(("sst", "quora", "sts"), values, strict=True))
            )
    return finding(root, id).verdict


@pytest.mark.parametrize(
    ("cosine", "verdict"),
    [
        ((0.3, 0.6, 0.5), "supported"),
        ((0.7, 0.6, 0.5), "contradicted"),  # one task of the three is better
        ((0.7, 0.9, 0.9), "contradicted"),
    ],
)
def test_all_three_tasks_must_be_worse(
    tmp_path: Path, cosine: tuple[float, float, float], verdict: str
) -> None:
    runs = {FINETUNED: (0.5, 0.8, 0.8), "jiang-yu/finetune-2": cosine}
    assert judged(tmp_path, "C22", runs) == verdict


@pytest.mark.parametrize(
    ("smart", "verdict"),
    [
        ((0.6, 0.795, 0.9), "inconclusive"),  # so small a loss of Quora may be none
        ((0.6, 0.6, 0.9), "contradicted"),  # Quora loses more than a little
        ((0.4, 0.795, 0.9), "contradicted"),  # SST gains nothing
    ],
)
def test_smart_may_cost_quora_a_little(
    tmp_path: Path, smart: tuple[float, float, float], verdict: str
) -> None:
    assert judged(tmp_path, "C24", {TUNED: (0.5, 0.8, 0.8), SMART: smart}) == verdict


def test_the_best_overall_score_may_go_with_worse_sst_and_sts(tmp_path: Path) -> None:
    runs = {TUNED: (0.4, 0.95, 0.7), DEFAULT: (0.5, 0.5, 0.8)}
    assert judged(tmp_path, "C26", runs) == "supported"
