"""Numbered deviations of our runs from the published systems."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks.multitask_bert.recipes.overrides import in_words
from benchmarks.multitask_bert.records.rows import Row, Run, Section
from benchmarks.multitask_bert.records.run import Json
from benchmarks.multitask_bert.report.published import (
    is_other_split,
    is_other_training,
    published_sizes,
)
from benchmarks.multitask_bert.tasks import BUILT_IN_DATA, TASKS

BERT_BASE = "bert-base-uncased"
KINDS: Mapping[str, str] = {
    "setting": "Data, encoder, budget and precision",
    "override": "Fields set to another value than the recipe's",
    "assumed": "Assumed, where the report is silent",
}


@dataclass(frozen=True)
class Deviation:
    """One way in which a run differs from its published system, or may."""

    kind: str  # of KINDS
    text: str


def number_deviations(section: Section) -> dict[Deviation, int]:
    """Number every deviation of a section's runs once, the kinds after each other."""
    found = [each for row in section.rows for each in row_deviations(section, row)]
    ordered = [each for kind in KINDS for each in dict.fromkeys(found) if each.kind == kind]
    return {each: number for number, each in enumerate(ordered, start=1)}


def row_deviations(section: Section, row: Row) -> list[Deviation]:
    """Give the deviations of a row's runs, each once."""
    return list(dict.fromkeys(each for run in row.runs for each in _of_run(section, run)))


def ranges(numbers: Iterable[int]) -> str:
    """Write numbers short.

    Example:
        >>> ranges([1, 2, 3, 5, 8, 9])
        '1-3, 5, 8, 9'
    """
    groups: list[list[int]] = []
    for number in sorted(set(numbers)):
        if groups and number == groups[-1][-1] + 1:
            groups[-1].append(number)
        else:
            groups.append([number])
    return ", ".join(
        f"{group[0]}-{group[-1]}" if len(group) > 2 else ", ".join(map(str, group))
        for group in groups
    )


def _of_run(section: Section, run: Run) -> Iterator[Deviation]:
    for text in _settings(section, run):
        yield Deviation("setting", text)
    overrides = [str(text) for text in run.config.get("deviations") or []]
    for text in overrides:
        yield Deviation("override", text)
    changed = [text.partition(" set to ")[0] for text in overrides]
    for text in dict.fromkeys(_assumed(run.recipe, changed)):
        yield Deviation("assumed", text)


def _settings(section: Section, run: Run) -> Iterator[str]:
    tasks = [task for task in TASKS if task in (run.recipe.get("tasks") or section.tasks)]
    if section.is_synthetic:
        names = ", ".join(TASKS[task].title for task in tasks)
        yield f"data: the built-in {section.data} corpus in place of {names}"
    else:
        sizes = run.sizes
        for task in tasks:
            for split, is_other in (
                ("train", is_other_training(run, task)),
                ("dev", is_other_split(section, task)),
            ):
                published = " or ".join(f"{size:,}" for size in published_sizes(split, task))
                if is_other and (task, split) in sizes:
                    found = f"{sizes[task, split]:,}"
                    yield f"{TASKS[task].title} {split} split: {found} examples, not {published}"
    encoder = str(run.config.get("encoder", "unknown"))
    if BERT_BASE not in encoder:
        own = " (small, trained from scratch)" if encoder in BUILT_IN_DATA.values() else ""
        yield f"encoder: {encoder}{own} in place of BERT base ({BERT_BASE})"
    scale, steps = run.config.get("scale", 1.0), run.config.get("max_steps")
    if scale != 1:
        yield f"budget: all epochs shortened by {scale:g} (--scale)"
    if steps is not None:
        yield f"budget: at most {steps:,} optimizer steps (--max-steps)"
    if (precision := run.config.get("precision", "fp32")) != "fp32":
        yield f"precision: {precision} in place of fp32"


def _assumed(recipe: Json, changed: Iterable[str]) -> Iterator[str]:
    """Give "field = value" of what is assumed, apart from what was set to something else."""
    for field in map(str, recipe.get("assumed") or []):
        keys = field.split(".")
        name = ".".join(keys[2:] if keys[0] == "stages" and len(keys) > 2 else keys)
        if not any(f"{path}.".startswith((f"{name}.", f"{field}.")) for path in changed):
            yield f"{name} = {_value(recipe, keys)}"


def _value(recipe: Json, keys: Iterable[str]) -> str:
    place: Any = recipe
    for key in keys:
        try:
            place = place[int(key) if isinstance(place, list) else key]
        except (KeyError, IndexError, TypeError, ValueError):
            return "?"
    return in_words(place, _of_one)


def _of_one(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(in_words(each, _of_one) for each in value) or "none"
    return "none" if value is None else str(value)
