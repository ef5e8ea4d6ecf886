"""Claims about surgery against recipes that differ in the method alone."""

from __future__ import annotations

import pytest

from benchmarks.multitask_bert.claims.findings import CLAIMS
from benchmarks.multitask_bert.claims.verdicts import (
    Each,
    Every,
)
from tests.benchmark.claims.made_up_seeds import RECIPES


@pytest.mark.parametrize("id", ["C2", "C4", "C25"])
def test_what_surgery_does_is_judged_by_recipes_that_differ_in_the_method_alone(id: str) -> None:
    (claim,) = (each for each in CLAIMS if each.id == id)
    assert isinstance(claim.check, Each | Every)
    for part in claim.check.parts:
        first, second = (RECIPES[each].in_every_stage(method="none") for each in part.recipes)
        for name in ("id", "description", "assumed"):
            object.__setattr__(first, name, getattr(second, name))
        assert first == second
