"""A group of examples against the rest: in mean error, and in the rate of errors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from benchmarks.multitask_bert.significance import (
    Estimate,
    ExactTest,
    Verdict,
    difference,
    fisher_test,
    judge,
    judge_exact,
    mean_estimate,
    regression,
    share_estimate,
)

Flags: TypeAlias = NDArray[np.bool_]

_SIDES = ("group", "number", "signed error", "rest", "signed error")
MEAN_HEADER = (*_SIDES, "difference", "at equal label", "predicted")
RATE_HEADER = ("group", "number", "share", "rest", "share", "p", "share is")


@dataclass(frozen=True)
class Group:
    """Some of the examples, and those that they are compared among."""

    title: str
    members: Flags  # [N]
    among: Flags | None = None  # [N]; None for all of them

    def split(self, also: Flags | None = None) -> tuple[Flags, Flags]:
        """Give who is in the group and who is the rest, of those in ``also``."""
        universe = np.ones_like(self.members)
        for flags in (self.among, also):
            if flags is not None:
                universe = universe & flags
        return self.members & universe, ~self.members & universe


@dataclass(frozen=True)
class MeanContrast:
    """The mean signed error of a group against that of the rest."""

    errors: NDArray[Any]  # [N], prediction less label
    labels: NDArray[Any]  # [N]
    inside: Flags  # [N]
    outside: Flags  # [N]

    @property
    def counts(self) -> tuple[int, int]:
        return int(self.inside.sum()), int(self.outside.sum())

    @cached_property
    def group(self) -> Estimate:
        return mean_estimate(self.errors[self.inside])

    @cached_property
    def rest(self) -> Estimate:
        return mean_estimate(self.errors[self.outside])

    @property
    def plain(self) -> Estimate:
        """The difference of the means, with Welch's standard error."""
        return difference(self.group, self.rest)

    @cached_property
    def at_equal_label(self) -> Estimate:
        """The group's coefficient in a regression of the error on label and membership.

        Scores that are drawn to the middle are too high on low labels whatever the text, and a
        group with low labels shows that in its plain difference.
        """
        either = self.inside | self.outside
        predictors = [self.inside[either].astype(float)]
        if np.unique(self.labels[either]).size > 1:
            predictors.append(self.labels[either])
        return regression(predictors, self.errors[either])[0]

    @property
    def verdict(self) -> Verdict:
        return judge(self.at_equal_label, *self.counts)

    def cells(self, title: str) -> list[str]:
        """Give a row below ``MEAN_HEADER``."""
        sides = zip(self.counts, (self.group, self.rest), strict=True)
        return [
            title,
            *(cell for count, mean in sides for cell in (str(count), mean.text())),
            self.plain.text(),
            self.at_equal_label.text(),
            self.verdict,
        ]


@dataclass(frozen=True)
class RateContrast:
    """The share of hits in a group against that in the rest."""

    num_hits: int
    count: int
    num_others: int
    other_count: int

    @classmethod
    def of(cls, hits: Flags, inside: Flags, outside: Flags) -> RateContrast:
        counts = (hits & inside, inside, hits & outside, outside)
        return cls(*(int(flags.sum()) for flags in counts))

    @property
    def group(self) -> Estimate:
        return share_estimate(self.num_hits, self.count)

    @property
    def rest(self) -> Estimate:
        return share_estimate(self.num_others, self.other_count)

    @property
    def plain(self) -> Estimate:
        return difference(self.group, self.rest)

    @cached_property
    def test(self) -> ExactTest:
        return fisher_test(self.num_hits, self.count, self.num_others, self.other_count)

    @property
    def verdict(self) -> Verdict:
        return judge_exact(self.test, self.plain.value)

    def cells(self, title: str) -> list[str]:
        """Give a row below ``RATE_HEADER``."""
        sides = ((self.count, self.group), (self.other_count, self.rest))
        return [
            title,
            *(cell for count, share in sides for cell in (str(count), share.text("{:.3f}"))),
            self.test.text,
            self.verdict,
        ]


def bins(values: NDArray[Any], edges: Sequence[float]) -> list[Group]:
    """Sort examples into the bins between edges, the last of which is open, empty ones too.

    Example:
        >>> [(found.title, found.members.tolist()) for found in bins(np.array([0, 4]), [0, 2, 9])]
        [('0 to 1', [True, False]), ('2 to 8', [False, True]), ('9 or more', [False, False])]
    """
    found = []
    is_whole = np.issubdtype(values.dtype, np.integer)
    for low, high in zip(edges, [*edges[1:], None], strict=True):
        members = values >= low if high is None else (values >= low) & (values < high)
        if high is None:
            title = f"{low:g} or more"
        elif not is_whole:
            title = f"{low:g} to {high:g}"
        else:
            title = f"{low:g}" if high == low + 1 else f"{low:g} to {high - 1:g}"
        found.append(Group(title, members))
    return found
