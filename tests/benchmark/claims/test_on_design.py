"""Claims on sampling, heads and stages against the recipes they compare, which differ in what the
claim is about alone; and against runs whose numbers decide them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks.multitask_bert.claims.on_design import CLAIMS
from tests.benchmark.claims.made_up_seeds import METRICS, RECIPES, finding, write_run, write_seeds

ANNEALED, EQUAL = "benton/ann-cosim", "benton/equit-cosim"
NOVEL = "chada-jolly/novel-cs-gs"


def differing(first: Any, second: Any, path: str = "") -> set[str]:
    """Names of the fields in which two recipes differ."""
    if isinstance(first, dict) and isinstance(second, dict):
        names = first.keys() | second.keys()
        return {
            found
            for name in names - {"id", "description", "assumed"}
            for found in differing(first.get(name), second.get(name), f"{path}.{name}".strip("."))
        }
    if isinstance(first, list) and isinstance(second, list) and len(first) == len(second):
        pairs = zip(first, second, strict=True)
        return {found for a, b in pairs for found in differing(a, b, path)}
    return set() if first == second else {path}


def pairs_of(check: Any) -> list[tuple[str, str]]:
    parts = getattr(check, "parts", None)
    return [tuple(check.recipes)] if parts is None else [p for c in parts for p in pairs_of(c)]


@pytest.mark.parametrize(
    ("id", "fields"),
    [
        ("C14", {"head_dropout"}),
        ("C15", {"head_dropout", "encoder_dropout"}),
        ("C20", {"stages"}),
    ],
)
def test_two_recipes_differ_in_what_the_claim_is_about(id: str, fields: set[str]) -> None:
    (claim,) = (each for each in CLAIMS if each.id == id)
    for first, second in pairs_of(claim.check):
        assert differing(RECIPES[first].to_dict(), RECIPES[second].to_dict()) <= fields


@pytest.mark.parametrize(
    ("gain", "verdict"),
    [
        (0.006, "inconclusive"),  # within the error of so many dev examples
        (0.15, "contradicted"),  # not slightly
        (-0.15, "contradicted"),
    ],
)
def test_annealed_sampling_must_be_slightly_better(
    tmp_path: Path, gain: float, verdict: str
) -> None:
    for seed in range(3):
        for id, value in ((ANNEALED, 0.8 + gain), (EQUAL, 0.8)):
            write_run(tmp_path, id, seed, metrics=dict.fromkeys(METRICS, value))
    assert finding(tmp_path, "C10").verdict == verdict


def test_an_average_start_is_judged_against_its_control(tmp_path: Path) -> None:
    write_seeds(tmp_path, NOVEL, "sts", [0.9] * 3)
    write_seeds(tmp_path, "control/chada-jolly-novel-without-average", "sts", [0.6] * 3)
    assert finding(tmp_path, "C19").verdict == "supported"
    assert finding(tmp_path, "C20").verdict == "not tested"
