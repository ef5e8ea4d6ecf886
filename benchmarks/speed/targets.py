"""The rows of the performance table: what is measured, against which target."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Settings:
    """How to measure.

    Args:
        rounds: that count, of each measurement.
        quick: tiny sizes, to see whether everything runs; the figures mean nothing.
        data: folder of the data files; the trainer's rows need it.
        encoder: checkpoint folder; the trainer's rows need it.
        seed: of weights and inputs.
    """

    rounds: int = 7
    quick: bool = False
    data: Path | None = None
    encoder: Path | None = None
    seed: int = 0


@dataclass(frozen=True)
class Target:
    """A bound of a number.

    Example:
        >>> str(Target("≤", 1.05)), Target("≤", 1.05).met(1.2), Target("=", 1.0).met(1.0)
        ('≤ 1.05', False, True)
    """

    rule: str
    bound: float
    unit: str = ""

    def __post_init__(self) -> None:
        if self.rule not in ("≤", "≥", "="):
            raise ValueError(f"rule: must be one of ≤, ≥, =, got {self.rule!r}")

    def met(self, value: float) -> bool:
        """Tells whether a number is within the bound."""
        if self.rule == "=":
            return value == self.bound
        return value <= self.bound if self.rule == "≤" else value >= self.bound

    def __str__(self) -> str:
        return f"{self.rule} {self.bound:g}{self.unit}"


@dataclass(frozen=True)
class Finding:
    """The result of a row's measurement.

    Args:
        measured: as the table shows it.
        value: what the target is about; None where there is no such number.
        notes: lines below the table.
    """

    measured: str
    value: float | None
    notes: tuple[str, ...] = field(default=())


Experiment = Callable[[Settings, frozenset[str]], Mapping[str, Finding]]


@dataclass(frozen=True)
class Row:
    """A line of the table.

    Args:
        key: by which the command line chooses it.
        title: what is measured.
        target: of the measured number.
        device: "cpu" or "cuda".
        experiment: measures the chosen rows of one run; given their keys, returns them by key.
    """

    key: str
    title: str
    target: Target
    device: str
    experiment: Experiment

    def verdict(self, finding: Finding) -> str:
        """Met, missed, or that there is nothing to judge."""
        if finding.value is None:
            return "not measured"
        return "met" if self.target.met(finding.value) else "missed"


def not_measured(reason: str) -> Finding:
    """A row without a number."""
    return Finding(f"not measured ({reason})", None)
