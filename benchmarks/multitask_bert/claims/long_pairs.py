"""The error of a recipe's STS scores on long pairs: are they too high?"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from benchmarks.multitask_bert.claims.comparable import find_row, seeds_text, steps_text
from benchmarks.multitask_bert.claims.examples import read_predictions
from benchmarks.multitask_bert.claims.verdicts import Measured, UntestedError
from benchmarks.multitask_bert.data.corpus import load_corpus
from benchmarks.multitask_bert.errors.contrasts import MeanContrast
from benchmarks.multitask_bert.errors.pairs import LONG_PAIR
from benchmarks.multitask_bert.records.rows import Row, Section
from benchmarks.multitask_bert.significance import MIN_COUNT, Estimate


@dataclass(frozen=True)
class LongPairError:
    """The mean signed error (prediction less label) on pairs of 300 characters or more.

    Args:
        recipe: its id.
        against_rest: less that of the other pairs at equal label, since scores drawn to the middle
            are too high wherever the labels are low.
    """

    recipe: str
    against_rest: bool = False

    @property
    def recipes(self) -> tuple[str, ...]:
        return (self.recipe,)

    def __call__(self, section: Section) -> Measured:
        row, _ = find_row(section, self.recipe)
        contrasts = _contrasts(row)
        found = [each.at_equal_label if self.against_rest else each.group for each in contrasts]
        values = [each.value for each in found]
        # The seeds answered the same pairs, so that error does not shrink with their number.
        errors = [each.error for each in found]
        seeds = np.std(values, ddof=1) / math.sqrt(len(values)) if len(values) > 1 else 0.0
        signs = [np.sign(each.errors[each.inside]) for each in contrasts]
        num_long = contrasts[0].counts[0]
        over, under = (int(sum(np.count_nonzero(own == sign) for own in signs)) for sign in (1, -1))
        title = "STS signed error on long pairs" + (
            " less that on others at equal label" if self.against_rest else ""
        )
        return Measured(
            f"{title} in `{row.name}`",
            Estimate(float(np.mean(values)), math.hypot(float(seeds), float(np.mean(errors)))),
            len(values),
            (
                f"{num_long} pairs of {LONG_PAIR} characters or more",
                f"of all seeds' answers {over} over and {under} under",
                seeds_text([len(values)]),
                steps_text(row),
            ),
            f"fewer than {MIN_COUNT} long pairs" if num_long < MIN_COUNT else "",
            pattern="{:+.2f}",
        )


def _contrasts(row: Row) -> list[MeanContrast]:
    """Each run's errors on long pairs against those on the others."""
    source = str(row.runs[0].config.get("data"))
    try:
        lengths = _lengths(source)
    except (ValueError, OSError):
        raise UntestedError(
            f"`{row.recipe_id}`: its STS texts are not at hand; `analyze` says it with --data"
        ) from None
    found = []
    for run in row.runs:
        read = read_predictions(run, "sts")
        if read is None or not set(read.ids) <= lengths.keys():
            raise UntestedError(f"`{row.recipe_id}` has no STS predictions that fit its data")
        long = np.array([lengths[id] >= LONG_PAIR for id in read.ids])
        found.append(MeanContrast(read.predictions - read.labels, read.labels, long, ~long))
    return found


@lru_cache(maxsize=4)
def _lengths(source: str) -> dict[str, int]:
    """Characters of both texts of each STS dev example, by its id."""
    split = load_corpus(source, ["sts"], ["dev"]).splits["sts", "dev"]
    return {example.id: sum(map(len, example.texts)) for example in split.examples}
