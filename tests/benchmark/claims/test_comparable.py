"""Rows that may and may not be compared against the settings put into them."""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.benchmark.claims.made_up_seeds import (
    CJ,
    CJ_GS,
    LOSS_SUM,
    METRICS,
    Change,
    finding,
    write_run,
    write_seeds,
)

COSINE, BOTH = "smet-walker/v1-dropout-0.3", "smet-walker/v3-cosine-pcgrad"


def set_in_stages(**fields: Any) -> Change:
    def change(recipe: dict[str, Any]) -> None:
        for stage in recipe["stages"]:
            stage.update(copy.deepcopy(fields))

    return change


def set_field(**fields: Any) -> Change:
    return lambda recipe: recipe.update(fields)


@pytest.mark.parametrize(
    ("rest", "told"),
    [
        ({"max_steps": 400}, "max_steps 400 and None"),
        ({"encoder": "another"}, "encoder another and an-encoder"),
        ({"scale": 0.5}, "scale 0.5 and 1.0"),
        ({"precision": "bf16"}, "precision bf16 and fp32"),
        ({"change": set_field(pooling="mean")}, 'pooling "mean" and "pooler"'),
        ({"change": set_in_stages(lr=1e-4)}, "stages.0.lr 0.0001 and 1e-05"),
        ({"change": set_in_stages(method="loss-sum")}, 'stages.0.method "loss-sum"'),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_rows_under_different_settings_are_not_compared(
    rest: dict[str, Any], told: str, tmp_path: Path
) -> None:
    write_seeds(tmp_path, CJ_GS, "sts", [0.4, 0.4], **rest)
    write_seeds(tmp_path, CJ, "sts", [0.6, 0.6])
    found = finding(tmp_path, "C3")
    assert found.verdict == "not tested"
    assert "different settings" in found.evidence
    assert told in found.evidence


def test_a_setting_that_both_rows_have_is_no_difference(tmp_path: Path) -> None:
    def change(recipe: dict[str, Any]) -> None:
        recipe.update(pooling="mean", head_dropout=0.2)
        set_in_stages(lr=1e-4)(recipe)

    for id, value in ((CJ_GS, 0.4), (CJ, 0.6)):
        write_seeds(tmp_path, id, "sts", [value] * 2, change=change, scale=0.1)
    found = finding(tmp_path, "C3")
    assert found.verdict == "supported"
    assert "1,000 steps, fewer than the recipe has" in found.evidence


def test_a_setting_that_takes_the_difference_away_is_refused(tmp_path: Path) -> None:
    for id in (f"smet-walker/v1-dropout-{rate}" for rate in (0.3, 0.5, 0.8)):
        write_seeds(tmp_path, id, "sst", [0.5] * 3, change=set_field(head_dropout=0.1))
    found = finding(tmp_path, "C14")
    assert found.verdict == "not tested"
    assert "head_dropout 0.1 and 0.1 (recipes: 0.5 and 0.3)" in found.evidence


def test_one_factor_on_both_rates_keeps_their_difference(tmp_path: Path) -> None:
    def change(recipe: dict[str, Any]) -> None:
        for stage in recipe["stages"]:
            stage["lr"] *= 10

    for option, value in (("pretrain", 0.40), ("finetune", 0.55)):
        for seed in range(2):
            id = f"jiang-yu/minbert-sst-{option}"
            write_run(tmp_path, id, seed, metrics={"sst": value}, change=change)
    assert finding(tmp_path, "C30").verdict == "supported"


@pytest.mark.parametrize(
    ("word", "replaced", "verdict"),
    [
        ("joint-sep", ("quora", "sts"), "supported"),
        ("siamese-cos", ("quora", "sts"), "not tested"),
        ("joint-sep", ("sts",), "not tested"),
    ],
    ids=["everywhere", "by the other's", "in one place alone"],
)
def test_an_encoding_that_replaces_another_in_both_rows(
    word: str, replaced: Sequence[str], verdict: str, tmp_path: Path
) -> None:
    def change(recipe: dict[str, Any]) -> None:
        for task in replaced:
            if recipe["pairs"][task] == "joint-raw-ids":
                recipe["pairs"][task] = word

    write_seeds(tmp_path, LOSS_SUM, "sts", [0.95] * 2, change=change)
    write_seeds(tmp_path, COSINE, "sts", [0.70] * 2, change=change)
    assert finding(tmp_path, "C11").verdict == verdict


def test_a_common_batch_size_for_recipes_of_different_tasks(tmp_path: Path) -> None:
    def change(recipe: dict[str, Any]) -> None:
        for stage in recipe["stages"]:
            stage["batch_size"] = dict.fromkeys(stage["batch_size"], 16)

    for seed in range(2):
        write_run(tmp_path, "jiang-yu/baseline", seed, change=change)
        for task in ("sst", "sts"):
            id, value = f"jiang-yu/single-task-{task}", METRICS[task] + 0.1
            write_run(tmp_path, id, seed, metrics={task: value}, change=change)
    assert finding(tmp_path, "C21").verdict == "supported"


def test_the_setting_with_most_seeds_is_taken_and_told(tmp_path: Path) -> None:
    for scale, ours, theirs in ((0.5, [0.9] * 2, [0.6] * 4), (0.1, [0.4] * 3, [0.6] * 3)):
        write_seeds(tmp_path, CJ_GS, "sts", ours, scale=scale)
        write_seeds(tmp_path, CJ, "sts", theirs, scale=scale)
    found = finding(tmp_path, "C3")
    assert found.verdict == "supported"
    assert "3 seeds each" in found.evidence
    assert "the most seeds of 2 settings" in found.evidence
    assert re.search(r"gs #(\d)` less `chada-jolly/baseline #(\d)` -0.200", found.evidence)


def test_an_unfinished_run_is_none(tmp_path: Path) -> None:
    write_seeds(tmp_path, CJ_GS, "sts", [0.4] * 2, finished=False)
    write_seeds(tmp_path, CJ, "sts", [0.6] * 2)
    found = finding(tmp_path, "C3")
    assert found.verdict == "not tested"
    assert found.evidence == f"needs complete runs of `{CJ_GS}`."


def test_a_limit_of_steps_says_nothing_about_epochs(tmp_path: Path) -> None:
    for id, value in (("smet-walker/v1-epochs-20", 0.9), (COSINE, 0.5)):
        write_seeds(tmp_path, id, "sts", [value] * 2, steps=400, max_steps=400)
    found = finding(tmp_path, "C18")
    assert found.verdict == "not tested"
    assert "max_steps ended a run" in found.evidence
