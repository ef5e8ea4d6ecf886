"""The order of tables and rows against that of the published reports."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.benchmark.records.made_up_runs import (
    LOSS_SUM,
    METRICS,
    write_run,
)
from tests.benchmark.report.read_tables import PUBLISHED, row_of, tables_of


@pytest.mark.parametrize("key", ["smet-walker", "chada-jolly", "benton", "xu", "jiang-yu"])
def test_a_report_has_its_own_order(markdown: Callable[..., str], tmp_path: Path, key: str) -> None:
    """Rows and columns against the file of published numbers, the runs made in another order."""
    printed = PUBLISHED["reports"][key]["tables"]
    ids = [id for table in printed for id in table["systems"]]
    for id in sorted(ids):
        cfimdb = "cfimdb" in id
        write_run(
            tmp_path,
            id,
            metrics={"cfimdb": 0.9} if cfimdb else METRICS,
            examples={"cfimdb": 245} if cfimdb else None,
            num_steps=10,
            num_devs=1,
        )
    text = markdown([tmp_path])
    for table, block in zip(printed, tables_of(text), strict=False):
        *rows, constant = block
        assert [row["system"].split(" │ ")[0] for row in rows] == [
            f"`{id}`" for id in table["systems"]
        ]
        assert constant["system"] == "constant predictor"
    headers = [line for line in text.splitlines() if line.startswith("| system")]
    overall = PUBLISHED["reports"][key]["overall"]
    for table, line in zip(printed, headers, strict=True):
        titles = [cell.strip().split(" │ ") for cell in line.strip("|").split(" | ")]
        assert [title[0] for title in titles[:2]] == ["system", "method"]
        titles = titles[2:]
        printed_columns = list(table["columns"].items())
        found = [title[0] for title in titles[: len(printed_columns)]]
        assert found == [name for _, name in printed_columns]
        for (column, _), title in zip(printed_columns, titles, strict=False):
            assert column != "overall" or title[1] == overall
        assert {"mean", "normalised"} <= {part for title in titles for part in title}


def test_a_control_stands_below_what_it_controls(
    markdown: Callable[..., str], tmp_path: Path
) -> None:
    write_run(tmp_path, "benton/ann-concat")
    write_run(tmp_path, "benton/equit-concat")
    write_run(tmp_path, "my/own", description="smet-walker-like, of nobody")
    pcgrad = "control/benton-concat-joint with PCGrad"
    write_run(tmp_path, "control/benton-concat-pcgrad", description=pcgrad)
    joint = "benton/ann-concat with a batch of each task"
    write_run(tmp_path, "control/benton-concat-joint", description=joint)
    benton, others, *_ = tables_of(markdown([tmp_path]))
    assert [row["system"].split(" │ ")[0] for row in benton] == [
        "`benton/ann-concat`",
        "`control/benton-concat-joint`",
        "`control/benton-concat-pcgrad`",
        "`benton/equit-concat`",
        "constant predictor",
    ]
    assert benton[1]["system"].endswith(f"control: {joint}")
    assert others[0]["system"] == "`my/own` │ smet-walker-like, of nobody"


def test_every_control_names_what_it_controls() -> None:
    from benchmarks.multitask_bert.recipes.catalog import all_recipes

    recipes = all_recipes()
    printed = [table for key in PUBLISHED["reports"].values() for table in key["tables"]]
    in_reports = {id for table in printed for id in table["systems"]}
    assert in_reports <= recipes.keys()
    for id, recipe in recipes.items():
        first = recipe.description.partition(" ")[0]
        is_method = id.startswith("method/")  # in a table of their own
        assert id in in_reports or is_method or first in recipes, f"{id}: {recipe.description}"


def test_other_settings_make_another_row(markdown: Callable[..., str], tmp_path: Path) -> None:
    write_run(tmp_path / "a", LOSS_SUM, 0, encoder="tiny")
    write_run(tmp_path / "b", LOSS_SUM, 0, encoder="large", metrics=dict.fromkeys(METRICS, 0.9))
    text = markdown([tmp_path])
    assert row_of(text, f"`{LOSS_SUM} #1`")["SST accuracy"].startswith("0.430 (1 seed)")
    assert row_of(text, f"`{LOSS_SUM} #2`")["SST accuracy"].startswith("0.900 (1 seed)")
    assert f"`{LOSS_SUM} #2`: Encoder `large`," in text
