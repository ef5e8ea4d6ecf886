"""The verdicts on the reports' claims against numbers worked out by hand from made-up runs."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.multitask_bert.claims.findings import CLAIMS, findings
from benchmarks.multitask_bert.records.rows import Section
from tests.paths import ROOT

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib
from tests.benchmark.claims.made_up_seeds import (
    CJ,
    CJ_GS,
    RECIPES,
    SIZES,
    section_of,
    write_run,
    write_seeds,
)

PUBLISHED = ROOT / "benchmarks/multitask_bert/report/published.toml"


def test_there_are_thirty_claims_in_order() -> None:
    found = findings(Section("some/folder", "no runs", ()))
    assert [each.id for each in found] == [f"C{number}" for number in range(1, 31)]
    assert {each.verdict for each in found} == {"not tested"}
    assert all("needs complete runs of `" in each.evidence for each in found)
    assert len({each.claim for each in found}) == 30
    assert all(each.claim.endswith(".") and len(each.claim) < 100 for each in found)


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.id)
def test_a_claim_names_recipes_and_reports_that_exist(claim: Any) -> None:
    published = tomllib.loads(PUBLISHED.read_text())
    assert claim.check.recipes
    assert set(claim.check.recipes) <= RECIPES.keys()
    assert claim.sources
    assert set(claim.sources) <= published["reports"].keys()


@pytest.mark.parametrize(
    ("report", "supported", "inconclusive"),
    [
        ("smet-walker", {"C1"}, {"C14", "C16", "C17", "C18"}),
        ("chada-jolly", {"C3", "C19"}, {"C2", "C15"}),
        ("benton", {"C11"}, {"C10", "C12"}),
        ("xu", set(), {"C24"}),
        ("jiang-yu", {"C21", "C23", "C30"}, {"C22"}),
    ],
)
def test_the_published_numbers_as_two_seeds_each(
    report: str, supported: set[str], inconclusive: set[str], tmp_path: Path
) -> None:
    """Which way each claim goes; the smaller differences are within the error of dev examples."""
    published = tomllib.loads(PUBLISHED.read_text())
    for id, system in published["systems"].items():
        printed = {task: value for task, value in system["dev"].items() if task in SIZES}
        if system["report"] == report:
            for seed in range(2):
                write_run(tmp_path, id, seed, metrics=printed, seconds=math.nan)
    found = [each for each in findings(section_of(tmp_path)) if each.source == report]
    verdicts = {each.id: each.verdict for each in found if each.verdict != "not tested"}
    assert verdicts == {
        **dict.fromkeys(supported, "supported"),
        **dict.fromkeys(inconclusive, "inconclusive"),
    }


def test_the_built_in_corpus_is_named_first(tmp_path: Path) -> None:
    for id, value in ((CJ_GS, 0.4), (CJ, 0.6)):
        write_seeds(tmp_path, id, "sts", [value] * 2, data="synthetic")
    found = {each.id: each for each in findings(section_of(tmp_path))}
    assert found["C3"].verdict == "supported"
    assert all(each.evidence.startswith("built-in corpus: ") for each in found.values())


def test_torch_is_not_imported() -> None:
    program = (
        "import sys, benchmarks.multitask_bert.claims.findings; sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)
