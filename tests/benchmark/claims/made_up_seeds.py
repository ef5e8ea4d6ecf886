"""Made-up runs that claims are judged by."""

from __future__ import annotations

import copy
import csv
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.multitask_bert.claims.findings import Finding, findings
from benchmarks.multitask_bert.recipes.catalog import all_recipes
from benchmarks.multitask_bert.records.rows import Section, find_runs, group_by_data

RECIPES = all_recipes()
SIZES = {"sst": 1101, "quora": 20212, "sts": 863, "cfimdb": 245}
METRICS = {"sst": 0.50, "quora": 0.80, "sts": 0.80}
LOSS_SUM, PCGRAD = "smet-walker/general-linear-loss-sum", "smet-walker/v2-dropout-0.3"
CJ, CJ_GS = "chada-jolly/baseline", "chada-jolly/gs"
Change = Callable[[dict[str, Any]], None]


def write_run(
    root: Path,
    id: str,
    seed: int = 0,
    *,
    metrics: Mapping[str, float] = METRICS,
    steps: int = 1000,
    train: Sequence[Mapping[str, Any]] = (),
    devs: Sequence[Mapping[str, float]] = (),
    predictions: Mapping[str, Sequence[tuple[str, float, float]]] | None = None,
    change: Change | None = None,
    finished: bool = True,
    seconds: float = 100.0,
    environment: Mapping[str, Any] | None = None,
    sizes: Mapping[str, int] = SIZES,
    **config: Any,
) -> None:
    """Make up a run of a recipe as it is, or as a change of its fields makes it."""
    folder = root / f"{len(list(root.iterdir()))}"
    (folder / "predictions").mkdir(parents=True)
    recipe = copy.deepcopy(RECIPES[id].to_dict())
    if change:
        change(recipe)
    content = {
        "recipe": recipe,
        "seed": seed,
        "data": "some/folder",
        "encoder": "an-encoder",
        "max_steps": None,
        "scale": 1.0,
        "precision": "fp32",
        "device": "cpu",
    }
    (folder / "config.json").write_text(json.dumps({**content, **config}))
    (folder / "environment.json").write_text(json.dumps(environment or {"cpu": "a processor"}))
    stage = len(recipe["stages"]) - 1
    events: list[dict[str, Any]] = [
        {"event": "data", "task": task, "split": "dev", "examples": sizes[task]} for task in metrics
    ]
    events += [
        {"event": "train", "stage": stage, "step": 10 * i, **each}
        for i, each in enumerate(train, start=1)
    ]
    events += [
        {"event": "dev", "stage": stage, "step": i * steps // len(devs), "metrics": each}
        for i, each in enumerate(devs, start=1)
    ]
    events.sort(key=lambda event: event.get("step", 0))
    if finished:
        end = {"event": "end", "step": steps, "metrics": metrics, "train_seconds": seconds}
        events.append(end)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(each) + "\n" for each in events))
    for task, rows in (predictions or {}).items():
        write_predictions(folder / f"predictions/{task}-dev.csv", rows)


def write_predictions(path: Path, rows: Sequence[tuple[str, float, float]]) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("id", "prediction", "label"), *rows])


def write_seeds(root: Path, id: str, task: str, values: Sequence[float], **rest: Any) -> None:
    for seed, value in enumerate(values):
        write_run(root, id, seed, metrics={**METRICS, task: value}, **rest)


def section_of(root: Path) -> Section:
    (section,) = group_by_data(find_runs([root])[0])
    return section


def finding(root: Path, id: str) -> Finding:
    return next(each for each in findings(section_of(root)) if each.id == id)


def estimates(text: str) -> list[tuple[float, float]]:
    """Give each "value ± error" of an evidence, without those that its details compare it to."""
    found = re.findall(r"([+-]?\d+\.\d+) ± (\d+\.\d+) \(", text)
    return [(float(a), float(b)) for a, b in found]
