"""Runs put side by side: what the report and its plots draw on."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from pathlib import Path

from benchmarks.multitask_bert import metrics
from benchmarks.multitask_bert.methods import METHODS
from benchmarks.multitask_bert.recipes.recipe import Recipe, RecipeError
from benchmarks.multitask_bert.recipes.void import void_stages
from benchmarks.multitask_bert.records.run import Json, read_run, run_folders
from benchmarks.multitask_bert.records.run import Run as Run
from benchmarks.multitask_bert.records.series import number
from benchmarks.multitask_bert.tasks import BUILT_IN_DATA, TASKS

METRIC_TITLES = {"accuracy": "accuracy", "pearson": "Pearson r"}
OVERALL = {"mean": metrics.overall_mean, "normalised": metrics.overall_normalised}
CONSTANT = "constant predictor"


@dataclass(frozen=True, eq=False)
class Row:
    """The runs of one recipe under one configuration, which differ in their seed alone."""

    name: str
    runs: tuple[Run, ...]  # that the numbers come from: the complete ones where there are any
    uncounted: tuple[Run, ...]
    index: int

    @property
    def recipe_id(self) -> str:
        return str(self.runs[0].recipe["id"])

    @cached_property
    def stage_methods(self) -> Mapping[tuple[str, str], None]:
        """The name of each stage's method and why it does nothing, if so; each once, in order."""
        return dict.fromkeys(_stage_methods(self.runs[0]))

    @property
    def methods(self) -> list[str]:
        """The names of the methods that do something, each once."""
        return list(dict.fromkeys(name for name, void in self.stage_methods if not void))

    @property
    def method(self) -> str:
        """Their titles in the order of the stages, with those that do nothing, and why."""
        titles = [
            _title(name) + (f" (void: {void})" if void else "") for name, void in self.stage_methods
        ]
        return " → ".join(titles) or "?"

    @property
    def label(self) -> str:
        titles = dict.fromkeys(
            _title(name) + " (void)" * bool(void) for name, void in self.stage_methods
        )
        unfinished = "" if self.runs[0].end else ", unfinished"
        return f"{self.name} ({' → '.join(titles) or '?'}{unfinished})"

    def values(self, key: str) -> list[float]:
        """Give one number a run: a task's metric, or an overall score."""
        if key in OVERALL:
            return [OVERALL[key](run.metrics) for run in self.runs if run.metrics]
        return [run.metrics[key] for run in self.runs if key in run.metrics]


@dataclass(frozen=True)
class Section:
    """All rows that were measured on the same data."""

    data: str
    notice: str
    rows: tuple[Row, ...]

    @property
    def is_synthetic(self) -> bool:
        return self.data in BUILT_IN_DATA

    @property
    def title(self) -> str:
        """Name the data without the path that they had on some machine."""
        return "the built-in corpus" if self.is_synthetic else Path(self.data).name or self.data

    @property
    def runs(self) -> list[Run]:
        return sorted(
            (run for row in self.rows for run in (*row.runs, *row.uncounted)),
            key=lambda run: (str(run.recipe["id"]), run.seed, run.folder),
        )

    @cached_property
    def dev_data(self) -> dict[str, Json]:
        found: dict[str, Json] = {}
        for run in self.runs:
            found.update(run.dev_data())
        return {task: found[task] for task in TASKS if task in found}

    @property
    def constants(self) -> dict[str, float]:
        """The metric of the best constant predictor by task."""
        return {
            task: number(data["constant_metric"])
            for task, data in self.dev_data.items()
            if data.get("constant_metric") is not None
        }

    @property
    def tasks(self) -> list[str]:
        asked = (run.recipe.get("tasks") or () for run in self.runs)
        known = set(self.dev_data).union(*asked, *(run.metrics for run in self.runs))
        return [task for task in TASKS if task in known]

    @property
    def columns(self) -> list[str]:
        return [*self.tasks, *OVERALL]

    @cached_property
    def pairs(self) -> list[str]:
        """The pairs of tasks, as ``"sst~quora"``, whose gradients somebody compared."""
        found = {
            pair
            for run in self.runs
            for event in run.by_step("train").values()
            for values in ("cosines", "conflict_rate")
            for pair in event.get(values) or {}
        }
        return [f"{a}~{b}" for a, b in combinations(TASKS, 2) if found & {f"{a}~{b}", f"{b}~{a}"}]


def find_runs(directories: Sequence[Path]) -> tuple[list[Run], list[str]]:
    """Read every run folder once; give also one line for each that cannot be read."""
    runs, complaints = [], []
    for folder in run_folders(directories):
        try:
            runs.append(read_run(folder))
        except ValueError as error:
            complaints.append(str(error))
    if not runs and complaints:
        raise ValueError(complaints[0])
    if not runs:
        where = ", ".join(map(str, directories)) or "no directory"
        raise ValueError(f"{where}: must hold a run's config.json, found none; do a run first")
    return runs, complaints


def group_by_data(runs: Iterable[Run]) -> list[Section]:
    """Put runs together whose data have one name, and splits of the same sizes."""
    groups: list[tuple[str, dict[tuple[str, str], int], list[Run]]] = []
    for run in runs:
        data, sizes = str(run.config.get("data", "unknown")), run.sizes
        for name, known, group in groups:
            if name == data and all(
                known.get(split, size) == size for split, size in sizes.items()
            ):
                known.update(sizes)
                group.append(run)
                break
        else:
            groups.append((data, dict(sizes), [run]))
    return [Section(data, _notice(group), _rows(group)) for data, _, group in groups]


def _notice(runs: Sequence[Run]) -> str:
    """The longest of what runs say about the same data: some need fewer tasks than others."""
    return max(
        (str(run.config.get("data_notice") or run.config.get("data")) for run in runs), key=len
    )


def _rows(runs: Iterable[Run]) -> tuple[Row, ...]:
    groups: dict[str, list[Run]] = {}
    for run in runs:
        key = json.dumps([run.recipe, run.settings], sort_keys=True)
        groups.setdefault(key, []).append(run)
    ids = [str(group[0].recipe["id"]) for group in groups.values()]
    rows = []
    for index, group in enumerate(groups.values()):
        name = ids[index]
        if ids.count(name) > 1:
            name += f" #{ids[: index + 1].count(name)}"
        # A seed counts once: a second run of it is no second sample.
        by_seed: dict[int, Run] = {}
        for run in sorted(group, key=lambda run: (run.seed, run.end is None)):
            by_seed.setdefault(run.seed, run)
        complete = [run for run in by_seed.values() if run.end]
        counted = complete or list(by_seed.values())
        uncounted = [run for run in group if run not in counted]
        rows.append(Row(name, tuple(counted), tuple(uncounted), index))
    return tuple(rows)


def _stage_methods(run: Run) -> Iterator[tuple[str, str]]:
    """Gives the methods of a run's stages, in order, with the reasons why they do nothing."""
    try:
        recipe = Recipe.from_dict(run.recipe)
    except RecipeError:  # of another version
        yield from ((name, "") for name in _values_of(run.recipe, "method"))
        return
    events = [*run.by_step("train").values(), *run.by_step("dev").values()]
    last = max((int(event.get("stage") or 0) for event in events), default=0)
    void = void_stages(recipe)
    for index, stage in enumerate(recipe.stages):
        is_missed = run.end and index > last and METHODS[stage.method].is_surgery
        yield stage.method, void.get(index, "the run ended before it" if is_missed else "")


def _title(method: str) -> str:
    return METHODS[method].title if method in METHODS else method


def metric_title(column: str) -> str:
    if column in OVERALL:
        return column
    return f"{TASKS[column].title} {METRIC_TITLES[TASKS[column].metric]}"


def pair_title(pair: str) -> str:
    return " and ".join(TASKS[task].title for task in pair.split("~"))


def _values_of(content: object, key: str) -> Iterator[str]:
    """Find the texts stored under a key at any depth of a JSON value."""
    if isinstance(content, list):
        for item in content:
            yield from _values_of(item, key)
    elif isinstance(content, dict):
        for name, value in content.items():
            if name == key and isinstance(value, str):
                yield value
            else:
                yield from _values_of(value, key)
