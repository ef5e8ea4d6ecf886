"""The contents of a run's folder, read: configuration, events and predictions."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

from benchmarks.multitask_bert import metrics
from benchmarks.multitask_bert.records.format import config_fault, parse_event
from benchmarks.multitask_bert.records.record import Record
from benchmarks.multitask_bert.records.series import Points, number
from benchmarks.multitask_bert.tasks import TASKS

Json: TypeAlias = dict[str, Any]

# Settings that tell two runs of a recipe apart besides their seeds, and their values by default.
SETTINGS: Json = {"encoder": None, "max_steps": None, "scale": 1.0, "precision": None}


def settings_of(config: Mapping[str, Any]) -> Json:
    """Give a config's value of each of ``SETTINGS``.

    Example:
        >>> settings_of({"encoder": "tiny", "seed": 1})
        {'encoder': 'tiny', 'max_steps': None, 'scale': 1.0, 'precision': None}
    """
    return {name: config.get(name, default) for name, default in SETTINGS.items()}


@dataclass(frozen=True, eq=False)
class Run:
    """The contents of one run's folder."""

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
    def settings(self) -> Json:
        """The run's value of each of ``SETTINGS``."""
        return settings_of(self.config)

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
        found = (self._best or {}).get("metrics") or {}
        return {task: number(found[task]) for task in TASKS if found.get(task) is not None}

    @cached_property
    def degenerate(self) -> frozenset[str]:
        """The tasks whose dev predictions do not depend on the input."""
        return frozenset(task for task in self.metrics if self._is_degenerate(task))

    def _is_degenerate(self, task: str) -> bool:
        predictions = _read_predictions(self.folder / f"predictions/{task}-dev.csv")
        if not predictions:
            return self._was_degenerate(task)
        return metrics.is_degenerate(predictions, TASKS[task].kind)

    def _was_degenerate(self, task: str) -> bool:
        """Reads what the run itself said of the best checkpoint, where its predictions are gone."""
        best = [event for event in self.by_step("dev").values() if event.get("best")]
        return bool(best) and task in (best[-1].get("degenerate") or [])

    @cached_property
    def legacy(self) -> Mapping[str, Mapping[str, float]]:
        """By task, what older evaluation code would have printed for the best checkpoint."""
        best = self._best or {}
        return {
            task: {name: number(value) for name, value in values.items()}
            for task, values in (best.get("legacy") or {}).items()
        }

    def by_step(self, event: str) -> dict[int, Json]:
        """Give the events of a kind by step; after a resume, the later of two counts."""
        return self._by_event.get(event, {})

    @cached_property
    def _by_event(self) -> dict[str, dict[int, Json]]:
        found: dict[str, dict[int, Json]] = {}
        for event in self.events:
            found.setdefault(str(event["event"]), {})[int(event.get("step") or 0)] = event
        return {kind: dict(sorted(events.items())) for kind, events in found.items()}

    @property
    def _best(self) -> Json | None:
        devs = self.by_step("dev").values()
        return self.end or next((event for event in reversed(devs) if event.get("best")), None)

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

    @property
    def sizes(self) -> dict[tuple[str, str], int]:
        """The number of examples by task and split."""
        return {
            (str(event.get("task")), str(event.get("split"))): int(event["examples"])
            for event in self.events
            if event["event"] == "data" and event.get("examples") is not None
        }

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


def run_folders(directories: Sequence[Path]) -> list[Path]:
    """Find the run folders in some directories, each once.

    Raises:
        ValueError: A directory is missing.
    """
    folders: dict[Path, Path] = {}
    for directory in map(Path, directories):
        if not directory.is_dir():
            raise ValueError(f"{directory}: must be a folder that holds runs, found none; check it")
        for path in sorted(directory.rglob("config.json")):
            # A checkpoint inside a run folder may have a config.json of its own.
            above = path.parent.relative_to(directory).parents
            if not any((directory / parent / "config.json").is_file() for parent in above):
                folders.setdefault(path.parent.resolve(), path.parent)
    return list(folders.values())


def read_run(folder: Path) -> Run:
    """Read a run folder.

    Raises:
        ValueError: Its configuration or its environment is damaged.
    """
    record = Record(folder)
    config = record.read_json("config.json")
    if (fault := config_fault(config)) is not None:
        raise ValueError(f"{folder / 'config.json'}: {fault}; run the recipe again")
    environment = folder / "environment.json"
    events, num_unreadable = _read_events(folder / "metrics.jsonl")
    return Run(
        folder=folder,
        config=config,
        environment=record.read_json("environment.json") if environment.is_file() else {},
        events=events,
        num_unreadable=num_unreadable,
    )


def _read_events(path: Path) -> tuple[tuple[Json, ...], int]:
    """Read the events of a run, and count the damaged lines before the last."""
    if not path.is_file():
        return (), 0
    *lines, last = path.read_bytes().split(b"\n")
    events = [parse_event(line) for line in lines]
    # The last line lacks its end while a run is writing it, and for good where one was killed.
    if (event := parse_event(last)) is not None:
        events.append(event)
    return tuple(event for event in events if event is not None), events.count(None)


def _read_predictions(path: Path) -> list[float]:
    """Read the predictions that are there; the last row is cut where a run was killed."""
    if not path.is_file():
        return []
    texts: list[str] = []
    with (
        path.open(encoding="utf-8", errors="replace", newline="") as file,
        suppress(csv.Error),  # a field that is too long ends what can be read
    ):
        texts.extend(row.get("prediction") or "" for row in csv.DictReader(file))
    found = []
    for text in texts:
        with suppress(ValueError):
            found.append(float(text))
    return found


def _ratio(counts: Iterable[object], seconds: Iterable[object]) -> float:
    time = math.fsum(map(number, seconds))
    return math.fsum(map(number, counts)) / time if time else math.nan
