"""Rows that differ in one setting against the pairs that a reader would make of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.multitask_bert.claims.twins import contrasts, near_twins, twins_together
from tests.benchmark.claims.made_up_seeds import (
    CJ,
    CJ_GS,
    LOSS_SUM,
    PCGRAD,
    section_of,
    write_run,
)

JOINT, JOINT_PCGRAD = "control/benton-concat-joint", "control/benton-concat-pcgrad"


def titles(root: Path) -> list[str]:
    return [each.title for each in contrasts(section_of(root).rows)]


def test_methods_are_compared_with_the_loss_sum(tmp_path: Path) -> None:
    def to_mgda(recipe: dict[str, Any]) -> None:
        recipe["stages"][0]["method"] = "mgda"

    write_run(tmp_path, PCGRAD, change=to_mgda)
    write_run(tmp_path, PCGRAD)
    write_run(tmp_path, LOSS_SUM)
    write_run(tmp_path, JOINT)
    name = PCGRAD
    assert titles(tmp_path) == [
        f"MGDA less loss sum ({name} #1)",
        f"PCGrad less loss sum ({name} #2)",
    ]


def test_another_setting_is_named(tmp_path: Path) -> None:
    write_run(tmp_path, "smet-walker/v1-dropout-0.3")
    write_run(tmp_path, "smet-walker/v1-dropout-0.8")
    (found,) = contrasts(section_of(tmp_path).rows)
    assert found.setting == "head_dropout"
    assert found.title == (
        "smet-walker/v1-dropout-0.8 less smet-walker/v1-dropout-0.3 (head_dropout)"
    )


def test_two_settings_are_one_too_many(tmp_path: Path) -> None:
    """The rows of the cosine and of joint pairs differ in pairs and heads, and in the method."""
    write_run(tmp_path, LOSS_SUM)
    write_run(tmp_path, "smet-walker/v3-cosine-pcgrad")
    write_run(tmp_path, CJ_GS)
    assert titles(tmp_path) == []


def test_budgets_and_unfinished_runs_are_no_twins(tmp_path: Path) -> None:
    write_run(tmp_path, CJ, max_steps=200)
    write_run(tmp_path, CJ_GS, max_steps=400)
    write_run(tmp_path, LOSS_SUM)
    write_run(tmp_path, PCGRAD, finished=False)
    rows = section_of(tmp_path).rows
    assert titles(tmp_path) == []
    assert list(near_twins(rows)) == [f"`{CJ_GS}` and `{CJ}`: max_steps 400 and 200"]


def test_what_is_logged_makes_no_other_row(tmp_path: Path) -> None:
    def silent(recipe: dict[str, Any]) -> None:
        recipe["stages"][0]["monitored"] = False

    write_run(tmp_path, CJ, change=silent)
    for seed in range(2):
        write_run(tmp_path, CJ, seed)
        write_run(tmp_path, CJ_GS, seed)
    (found,) = contrasts(section_of(tmp_path).rows)
    assert (found.first.recipe_id, found.second.recipe_id) == (CJ_GS, CJ)
    assert len(found.second.runs) == 2


def test_twins_stand_together(tmp_path: Path) -> None:
    for id in (CJ, LOSS_SUM, JOINT_PCGRAD, CJ_GS, PCGRAD, JOINT):
        write_run(tmp_path, id)
    found = [[row.recipe_id for row in each] for each in twins_together(section_of(tmp_path).rows)]
    assert found == [[CJ, CJ_GS], [LOSS_SUM, PCGRAD], [JOINT_PCGRAD, JOINT]]
