"""The tables and numbers that the five reports print, and for which data."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from benchmarks.multitask_bert.records.rows import OVERALL, Run, Section

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

TRAIN_TOLERANCE = 1e-3  # of the number of examples: editions count their blank labels or not


@dataclass(frozen=True)
class PrintedTable:
    """A table of dev results as a report prints it."""

    title: str
    columns: Mapping[str, str]  # task or overall score -> its name there, from left to right
    systems: Mapping[str, str]  # recipe id -> the name of its row there, from top to bottom


@dataclass(frozen=True)
class Report:
    """One of the five reports; ``overall`` is which of the two scores it prints."""

    key: str
    title: str
    authors: tuple[str, ...]
    overall: str
    tables: tuple[PrintedTable, ...]

    @property
    def name(self) -> str:
        return " and ".join(author.split()[-1] for author in self.authors)


@cache
def reports() -> Mapping[str, Report]:
    """Give the reports by their key, which the ids of their recipes begin with.

    Example:
        >>> list(reports()["benton"].tables[0].columns.items())[-1]
        ('normalised', 'Overall Performance')
    """
    return {
        key: Report(
            key=key,
            title=content["title"],
            authors=tuple(content["authors"]),
            overall=content["overall"],
            tables=tuple(
                PrintedTable(
                    title=table.get("title", ""),
                    columns={
                        content["overall"] if name == "overall" else name: printed
                        for name, printed in table["columns"].items()
                    },
                    systems=table["systems"],
                )
                for table in content["tables"]
            ),
        )
        for key, content in _content()["reports"].items()
    }


def printed_metrics(recipe_id: str) -> dict[str, float]:
    """Give a system's dev metrics and both overall scores, the one not printed computed.

    Example:
        >>> {name: round(value, 3) for name, value in printed_metrics("benton/baseline").items()}
        {'sst': 0.505, 'quora': 0.822, 'sts': 0.496, 'mean': 0.608, 'normalised': 0.692}
    """
    system = _content()["systems"].get(recipe_id)
    if not system or not system.get("dev"):
        return {}
    printed = dict(system["dev"])
    overall = printed.pop("overall", None)
    complete = {"sst", "quora", "sts"} <= printed.keys()
    scores = {name: score(printed) for name, score in OVERALL.items()} if complete else {}
    found = {**printed, **scores}
    if overall is not None:
        found[reports()[system["report"]].overall] = overall
    return found


def caution(recipe_id: str) -> str:
    """Say what is odd about a system's printed numbers; empty where nothing is."""
    return str(_content()["systems"].get(recipe_id, {}).get("caution", ""))


def is_other_split(section: Section, task: str) -> bool:
    """Say whether a task's dev split is none of those that were published on."""
    found = section.dev_data.get(task, {}).get("examples")
    return section.is_synthetic or (found is not None and found not in published_sizes("dev", task))


def is_other_training(run: Run, task: str) -> bool:
    """Say whether a task's train split is none of those that were published on."""
    found = run.sizes.get((task, "train"))
    return found is not None and not any(
        abs(found - size) <= TRAIN_TOLERANCE * size for size in published_sizes("train", task)
    )


def published_sizes(split: str, task: str) -> list[int]:
    return list(_content()["examples"][split].get(task, []))


@cache
def _content() -> dict[str, Any]:
    return tomllib.loads(Path(__file__).with_name("published.toml").read_text(encoding="utf-8"))
