"""The published numbers against the reports' tables, and the marks beside them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.multitask_bert.records.rows import OVERALL
from tests.benchmark.records.made_up_runs import (
    COSINE,
    COSINE_PCGRAD,
    PCGRAD,
    write_run,
)
from tests.benchmark.report.read_tables import PUBLISHED, row_of
from tests.paths import SHARED

INVENTORY = SHARED / "reference/results.json"


def test_published_numbers_of_three_systems() -> None:
    systems = PUBLISHED["systems"]
    assert tuple(systems[COSINE]["dev"].values()) == (0.501, 0.831, 0.676, 0.669)
    assert tuple(systems[PCGRAD]["dev"].values()) == (0.500, 0.853, 0.864, 0.739)
    assert tuple(systems[COSINE_PCGRAD]["dev"].values()) == (0.518, 0.375, 0.171, 0.355)


@pytest.mark.parametrize("id", PUBLISHED["systems"])
def test_a_published_overall_is_that_of_its_metrics(id: str) -> None:
    """Within what rounding can do, of the score and of its three metrics, but where a caution says
    that it is not."""
    system = PUBLISHED["systems"][id]
    kind = PUBLISHED["reports"][system["report"]]["overall"]
    for split in ("dev", "test"):
        metrics = dict(system.get(split, {}))
        overall = metrics.pop("overall", None)
        if overall is not None and len(metrics) == 3:
            digits = 0.005 if round(overall, 2) == overall else 0.0005
            of_metrics = 0.0005 if kind == "mean" else 0.0005 * 2.5 / 3
            exact = abs(overall - OVERALL[kind](metrics)) <= digits + of_metrics + 1e-9
            assert exact != ("overall" in system.get("caution", ""))


@pytest.mark.skipif(not INVENTORY.exists(), reason="the inventory is not beside the checkout")
def test_published_numbers_are_those_of_the_inventory() -> None:
    names = {"sst": "sst", "para": "quora", "sts": "sts", "cfimdb": "cfimdb"}
    expected = {}
    for item in json.loads(INVENTORY.read_text()):
        found: dict[str, dict[str, float]] = {}
        for split in ("dev", "test"):
            reported = {**item["reported"], **(item["reported"].get(split) or {})}
            for name, task in names.items():
                kind = "corr" if name == "sts" else "acc"
                value = reported.get(f"{name}_{split}_{kind}")
                if value is not None:
                    found.setdefault(split, {})[task] = value
            overall = (item["reported"].get(split) or {}).get("overall")
            if overall is not None:
                found.setdefault(split, {})["overall"] = overall
        if found and item["count_in_seed"]:
            expected[item["id"]] = found
    assert {
        id: {split: system[split] for split in ("dev", "test") if split in system}
        for id, system in PUBLISHED["systems"].items()
    } == expected


def test_published_numbers_of_another_split_are_marked(
    markdown: Callable[..., str], tmp_path: Path
) -> None:
    write_run(tmp_path, PCGRAD, examples={"sst": 1101, "quora": 1999, "sts": 863})
    text = markdown([tmp_path])
    row = row_of(text, f"`{PCGRAD}`")
    assert row["SST accuracy"].endswith("│ 0.500 │ -0.070")
    assert row["STS Pearson r"].endswith("│ 0.864 │ -0.034")
    assert row["Quora accuracy"].endswith("│ 0.853 ≠")
    assert row["mean"].endswith("│ 0.739 ≠")
    assert "≠ Published for another dev split, so do not compare: Quora (here 1,999" in text
