"""Verdicts on a claim from a measured number, or from several together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias

from benchmarks.multitask_bert.records.rows import Section
from benchmarks.multitask_bert.significance import NUM_ERRORS, Estimate

Verdict: TypeAlias = Literal["supported", "contradicted", "inconclusive", "not tested"]

# One run says nothing about what another seed would have given.
MIN_SEEDS = 2
NOISE = "too close to tell"


class UntestedError(Exception):
    """Nothing was measured.

    Args:
        reason: why, unless all that is wanted is a run.
        missing: ids of the recipes that have no complete run.
    """

    def __init__(self, reason: str = "", missing: tuple[str, ...] = ()) -> None:
        super().__init__(reason)
        self.reason = reason
        self.missing = missing


@dataclass(frozen=True)
class Measured:
    """A number that a claim is about.

    Args:
        title: what it is.
        estimate: its value and standard error.
        num_seeds: the fewest of the rows that it comes from.
        details: what a reader has to know beside it.
        doubt: why it can decide nothing, if so.
        pattern: how its value and error are written.
        reach: how far it may be off, if not two standard errors.
    """

    title: str
    estimate: Estimate
    num_seeds: int
    details: tuple[str, ...] = ()
    doubt: str = ""
    pattern: str = "{:+.3f}"
    reach: float | None = None


class Measure(Protocol):
    """How to come by a number; raises ``UntestedError`` where the runs do not have it."""

    @property
    def recipes(self) -> tuple[str, ...]:
        """Ids of what has to be run."""

    def __call__(self, section: Section) -> Measured:
        """Measure it on the runs of a section."""


@dataclass(frozen=True)
class Outcome:
    """A verdict and what it rests on.

    Args:
        verdict: on the claim.
        numbers: what was measured.
        reasons: why something else was not.
        missing: ids of the recipes that have no complete run.
        weak: whether no number could have decided it: a single seed, a constant prediction.
    """

    verdict: Verdict
    numbers: tuple[str, ...] = ()
    reasons: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    weak: bool = False

    @property
    def text(self) -> str:
        """The numbers first, then what is missing."""
        lacks = list(self.reasons)
        if self.missing:
            lacks.append(f"needs complete runs of {', '.join(f'`{id}`' for id in self.missing)}")
        if self.numbers and lacks:
            lacks[0] = f"not tested: {lacks[0]}"
        return "; ".join([*self.numbers, *lacks])


class Check(Protocol):
    """A claim in a form that runs can decide."""

    @property
    def recipes(self) -> tuple[str, ...]:
        """Ids of what has to be run."""

    def outcome(self, section: Section) -> Outcome:
        """Decide it on the runs of a section."""


@dataclass(frozen=True)
class Within:
    """The claim that a number lies in an interval."""

    measure: Measure
    low: float = -math.inf
    high: float = math.inf

    @property
    def recipes(self) -> tuple[str, ...]:
        return self.measure.recipes

    def outcome(self, section: Section) -> Outcome:
        try:
            found = self.measure(section)
        except UntestedError as error:
            reasons = (error.reason,) if error.reason else ()
            return Outcome("not tested", reasons=reasons, missing=error.missing)
        verdict, reason = judge(found, self.low, self.high)
        claimed = f"claimed {_interval(self.low, self.high)}: {verdict}"
        details = [*found.details, f"{claimed}{', ' if reason else ''}{reason}"]
        text = f"{found.title} {found.estimate.text(found.pattern)}"
        text += f" ({'; '.join(details)})"
        return Outcome(verdict, (text,), weak=reason not in ("", NOISE))


@dataclass(frozen=True)
class Every:
    """A claim of several parts: it needs all of them, and falls with any."""

    parts: tuple[Check, ...]

    @property
    def recipes(self) -> tuple[str, ...]:
        return _all_recipes(self.parts)

    def outcome(self, section: Section) -> Outcome:
        outcomes = [part.outcome(section) for part in self.parts]
        verdicts = {each.verdict for each in outcomes}
        verdict: Verdict = "inconclusive"
        if "contradicted" in verdicts:
            verdict = "contradicted"
        elif len(verdicts) == 1:
            verdict = outcomes[0].verdict
        return _joined(verdict, outcomes, weak=any(each.weak for each in outcomes))


@dataclass(frozen=True)
class Each:
    """One claim on several systems: those that could decide it have to agree.

    A system that was not run, or with a single seed, says nothing against what the others say.
    """

    parts: tuple[Check, ...]

    @property
    def recipes(self) -> tuple[str, ...]:
        return _all_recipes(self.parts)

    def outcome(self, section: Section) -> Outcome:
        outcomes = [part.outcome(section) for part in self.parts]
        tested = [each for each in outcomes if each.verdict != "not tested"]
        verdicts = {each.verdict for each in tested if not each.weak}
        verdict: Verdict = "inconclusive"
        if not tested:
            verdict = "not tested"
        elif len(verdicts) == 1:
            verdict = verdicts.pop()
        return _joined(verdict, outcomes, weak=not verdicts)


def judge(found: Measured, low: float, high: float) -> tuple[Verdict, str]:
    """Say whether a number lies in an interval, as far off its ends as it may be; and why not.

    Example:
        >>> judge(Measured("gain", Estimate(0.05, 0.01), 3), 0.0, math.inf)
        ('supported', '')
        >>> judge(Measured("gain", Estimate(-0.05, 0.01), 3), 0.0, math.inf)
        ('contradicted', '')
        >>> judge(Measured("gain", Estimate(0.05, 0.04), 3), 0.0, math.inf)
        ('inconclusive', 'too close to tell')
    """
    if found.doubt:
        return "inconclusive", found.doubt
    value, error = found.estimate.value, found.estimate.error
    if not math.isfinite(value):
        return "inconclusive", "not a finite number"
    if found.num_seeds < MIN_SEEDS:
        return "inconclusive", "a single seed decides nothing"
    if not math.isfinite(error):
        return "inconclusive", "its standard error is not known"
    reach = NUM_ERRORS * error if found.reach is None else found.reach
    bottom, top = value - reach, value + reach
    if low < bottom and top < high:
        return "supported", ""
    if top < low or high < bottom:
        return "contradicted", ""
    return "inconclusive", NOISE


def _interval(low: float, high: float) -> str:
    if math.isinf(high):
        return f"above {low:g}"
    if math.isinf(low):
        return f"below {high:g}"
    return f"between {low:g} and {high:g}"


def _all_recipes(parts: Sequence[Check]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(id for part in parts for id in part.recipes))


def _joined(verdict: Verdict, outcomes: Sequence[Outcome], *, weak: bool) -> Outcome:
    """Put together what several outcomes rest on, each thing once."""
    return Outcome(
        verdict,
        tuple(dict.fromkeys(text for each in outcomes for text in each.numbers)),
        tuple(dict.fromkeys(text for each in outcomes for text in each.reasons)),
        tuple(dict.fromkeys(id for each in outcomes for id in each.missing)),
        weak,
    )
