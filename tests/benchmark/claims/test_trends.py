"""Claims about late training against curves put into the logs."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.benchmark.claims.made_up_seeds import CJ, finding, write_run


def curve(*values: float) -> list[dict[str, float]]:
    return [{"sst": value, "quora": value, "sts": value} for value in values]


@pytest.mark.parametrize(
    ("losses", "dev", "verdict"),
    [
        ((4.0, 3.0, 2.0, 1.0), (0.5, 0.6, 0.7, 0.7), "supported"),
        ((4.0, 3.0, 2.0, 1.0), (0.5, 0.6, 0.7, 0.8), "contradicted"),
        ((4.0, 3.0, 2.0, 2.0), (0.5, 0.6, 0.7, 0.7), "contradicted"),
        ((4.0, 3.0, 2.0, 1.0), (0.7, 0.7, 0.7), "not tested"),
    ],
    ids=["overfits", "still rises", "loss stalls", "too few evaluations"],
)
def test_a_loss_that_falls_while_the_dev_metrics_have_stopped(
    losses: tuple[float, ...], dev: tuple[float, ...], verdict: str, tmp_path: Path
) -> None:
    train = [{"losses": {"sst": loss, "sts": 2 * loss}} for loss in losses for _ in range(25)]
    for seed in range(2):
        write_run(tmp_path, "xu/dense-tuned", seed, train=train, devs=curve(*dev))
    assert finding(tmp_path, "C27").verdict == verdict


@pytest.mark.parametrize(
    ("sts", "others", "verdict"),
    [
        ((0.6, 0.8, 0.7, 0.6), (0.4, 0.5, 0.6, 0.7), "supported"),
        ((0.6, 0.7, 0.8, 0.9), (0.4, 0.5, 0.6, 0.7), "contradicted"),
        ((0.6, 0.8, 0.7, 0.6), (0.4, 0.7, 0.6, 0.5), "contradicted"),
    ],
)
def test_a_task_that_is_left_behind(
    sts: tuple[float, ...], others: tuple[float, ...], verdict: str, tmp_path: Path
) -> None:
    devs = [{"sst": b, "quora": b, "sts": a} for a, b in zip(sts, others, strict=True)]
    for seed in range(2):
        write_run(tmp_path, CJ, seed, devs=devs)
    assert finding(tmp_path, "C28").verdict == verdict
