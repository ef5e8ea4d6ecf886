"""The folders that runs left, read and put side by side: what the report and its plots draw on."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from benchmarks.multitask_bert import metrics
from benchmarks.multitask_bert.tasks import TASKS

Json: TypeAlias = dict[str, Any]
Points: TypeAlias = Mapping[int, float]  # step -> value

METRIC_TITLES = {"accuracy": "accuracy", "pearson": "Pearson r"}
METHOD_TITLES = {"loss-sum": "loss sum", "pcgrad": "PCGrad"}
OVERALL = {"mean": metrics.overall_mean, "normalised": metrics.overall_normalised}
CONSTANT = "constant predictor"
NONE = "-"  # a cell without a number


@dataclass(frozen=True)
class Run:
    """What one run left in its folder."""

    folder: Path
    config: Json
    environment: Json
    events: tuple[Json, ...]
    num_unreadable: int  # damaged lines of metrics.jsonl, its last one apart

    @property
    def seed(self) -> int:
        return int(self.config["seed"])

    @property
    def recipe(self) -> Json:
        recipe: Json = self.config["recipe"]
        return recipe

    @property
    def end(self) -> Json | None:
        """The closing event; None while the run is unfinished."""
        # A run that went on after its end, with more epochs, is unfinished again.
        progress = [event for event in self.events if event["event"] in ("train", "dev", "end")]
        return progress[-1] if progress and progress[-1]["event"] == "end" else None

    @property
    def step(self) -> int:
        """The last step that is on record."""
        return max((int(event.get("step") or 0) for event in self.events), default=0)

    @cached_property
    def metrics(self) -> Mapping[str, float]:
        """The dev metrics of the best checkpoint so far."""
        devs = self.by_step("dev").values()
        best = self.end or next((event for event in reversed(devs) if event.get("best")), None)
        found = (best or {}).get("metrics") or {}
        return {task: number(found[task]) for task in TASKS if found.get(task) is not None}

    @cached_property
    def degenerate(self) -> frozenset[str]:
        """The tasks whose dev predictions do not depend on the input."""
        return frozenset(
            task
            for task in self.metrics
            if (predictions := _read_predictions(self.folder / f"predictions/{task}-dev.csv"))
            and metrics.is_degenerate(predictions, TASKS[task].kind)
        )

    def by_step(self, event: str) -> dict[int, Json]:
        """Give the events of a kind by step; after a resume, the later of two counts."""
        found = {int(e.get("step") or 0): e for e in self.events if e["event"] == event}
        return dict(sorted(found.items()))

    def points(self, event: str, values: str, key: str) -> Points:
        """Give one curve: the entry ``key`` of the mapping ``values`` at each step that has it."""
        return {
            step: number(item[values][key])
            for step, item in self.by_step(event).items()
            if (item.get(values) or {}).get(key) is not None
        }

    def pair_points(self, values: str, pair: str) -> Points:
        """Give the curve of a pair of tasks, whichever of the two the run names first."""
        first, second = pair.split("~")
        return self.points("train", values, pair) or self.points(
            "train", values, f"{second}~{first}"
        )

    def dev_data(self) -> dict[str, Json]:
        """Give what is on record about each task's dev split."""
        found = [e for e in self.events if e["event"] == "data" and e.get("split") == "dev"]
        return {str(event.get("task")): event for event in found}

    def speeds(self) -> tuple[float, float]:
        """Give training and evaluation samples per second."""
        if self.end:
            return (
                number(self.end.get("samples_per_second")),
                number(self.end.get("eval_samples_per_second")),
            )
        latest = list(self.by_step("train").values())[-1:]
        devs = self.by_step("dev").values()
        return (
            _ratio((e.get("samples") for e in latest), (e.get("seconds") for e in latest)),
            _ratio((e.get("eval_samples") for e in devs), (e.get("eval_seconds") for e in devs)),
        )


@dataclass(frozen=True)
class Row:
    """The runs of one recipe under one configuration, which differ in their seed alone."""

    name: str
    runs: tuple[Run, ...]  # that the numbers come from: the complete ones where there are any
    uncounted: tuple[Run, ...]
    index: int

    @property
    def recipe_id(self) -> str:
        return str(self.runs[0].recipe["id"])

    @property
    def method(self) -> str:
        names = dict.fromkeys(_values_of(self.runs[0].recipe, "method"))
        return " → ".join(METHOD_TITLES.get(name, name) for name in names) or "?"

    @property
    def label(self) -> str:
        unfinished = "" if self.runs[0].end else ", unfinished"
        return f"{self.name} ({self.method}{unfinished})"

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
        return self.data == "synthetic"

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
    folders: dict[Path, Path] = {}
    for directory in map(Path, directories):
        if not directory.is_dir():
            raise ValueError(f"{directory}: must be a folder that holds runs, found none; check it")
        for path in sorted(directory.rglob("config.json")):
            # A checkpoint inside a run folder may have a config.json of its own.
            above = path.parent.relative_to(directory).parents
            if not any((directory / parent / "config.json").is_file() for parent in above):
                folders.setdefault(path.parent.resolve(), path.parent)
    runs, complaints = [], []
    for folder in folders.values():
        try:
            runs.append(_read_run(folder))
        except ValueError as error:
            complaints.append(str(error))
    if not runs and complaints:
        raise ValueError(complaints[0])
    if not runs:
        where = ", ".join(map(str, directories)) or "no directory"
        raise ValueError(f"{where}: must hold a run's config.json, found none; do a run first")
    return runs, complaints


def _read_run(folder: Path) -> Run:
    config = _read_json(folder / "config.json")
    recipe = config.get("recipe")
    if not (isinstance(recipe, dict) and "id" in recipe and isinstance(config.get("seed"), int)):
        raise ValueError(
            f"{folder / 'config.json'}: must name a recipe's id and a seed, found other keys; "
            "run the recipe again"
        )
    environment = folder / "environment.json"
    events, num_unreadable = _read_events(folder / "metrics.jsonl")
    return Run(
        folder=folder,
        config=config,
        environment=_read_json(environment) if environment.is_file() else {},
        events=events,
        num_unreadable=num_unreadable,
    )


def _read_json(path: Path) -> Json:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{path}: must be JSON, found {reason}; run the recipe again") from None
    if not isinstance(content, dict):
        raise ValueError(
            f"{path}: must be a JSON object, found {type(content).__name__}; run the recipe again"
        )
    return content


def _read_events(path: Path) -> tuple[tuple[Json, ...], int]:
    if not path.is_file():
        return (), 0
    *lines, last = path.read_bytes().split(b"\n")
    events = [_parse_event(line) for line in lines]
    # The last line lacks its end while a run is writing it, and for good where one was killed.
    if (event := _parse_event(last)) is not None:
        events.append(event)
    return tuple(event for event in events if event is not None), events.count(None)


def _parse_event(line: bytes) -> Json | None:
    try:
        event = json.loads(line)
    except ValueError:
        return None
    return event if isinstance(event, dict) and "event" in event else None


def _read_predictions(path: Path) -> list[float]:
    """Read the predictions that are there; the last row is cut where a run was killed."""
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", errors="replace", newline="") as file:
        texts = [row.get("prediction") or "" for row in csv.DictReader(file)]
    found = []
    for text in texts:
        with suppress(ValueError):
            found.append(float(text))
    return found


def group_by_data(runs: Iterable[Run]) -> list[Section]:
    by_data: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        data = str(run.config.get("data", "unknown"))
        by_data.setdefault((data, str(run.config.get("data_notice") or data)), []).append(run)
    return [Section(data, notice, _rows(group)) for (data, notice), group in by_data.items()]


def _rows(runs: Iterable[Run]) -> tuple[Row, ...]:
    groups: dict[str, list[Run]] = {}
    for run in runs:
        settings = {key: run.config.get(key) for key in ("encoder", "max_steps", "precision")}
        settings["scale"] = run.config.get("scale", 1.0)
        key = json.dumps([run.recipe, settings], sort_keys=True)
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


def metric_title(column: str) -> str:
    if column in OVERALL:
        return column
    return f"{TASKS[column].title} {METRIC_TITLES[TASKS[column].metric]}"


def pair_title(pair: str) -> str:
    return " and ".join(TASKS[task].title for task in pair.split("~"))


def mean_text(values: Sequence[float], pattern: str) -> str:
    """Give "mean ± standard deviation", the mean alone of one value, and a dash of none."""
    if not values:
        return NONE
    if not all(map(math.isfinite, values)):
        return "NaN"
    mean = pattern.format(np.mean(values))
    return mean if len(values) == 1 else f"{mean} ± {pattern.format(deviation(values))}"


def deviation(values: Sequence[float]) -> float:
    return float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


def finite(values: Iterable[float]) -> list[float]:
    return [float(value) for value in values if math.isfinite(value)]


def last(points: Points) -> float:
    return list(points.values())[-1] if points else math.nan


def number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else math.nan


def _ratio(counts: Iterable[object], seconds: Iterable[object]) -> float:
    time = math.fsum(map(number, seconds))
    return math.fsum(map(number, counts)) / time if time else math.nan


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
