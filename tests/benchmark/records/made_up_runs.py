"""Run folders made up for the tests of the report."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

LOSS_SUM = "smet-walker/general-linear-loss-sum"
COSINE = "smet-walker/v1-dropout-0.3"
PCGRAD = "smet-walker/v2-dropout-0.3"
COSINE_PCGRAD = "smet-walker/v3-cosine-pcgrad"
CONSTANTS = {"sst": 0.26, "quora": 0.62, "sts": 0.0, "cfimdb": 0.51}
METRICS = {"sst": 0.43, "quora": 0.80, "sts": 0.83}


def write_run(
    root: Path,
    recipe: str = LOSS_SUM,
    seed: int = 0,
    *,
    metrics: Mapping[str, float] = METRICS,
    num_steps: int = 400,
    finished: bool = True,
    conflicts: bool = True,
    num_devs: int = 4,
    examples: Mapping[str, int] | None = None,
    **config: Any,
) -> Path:
    """Make up a run whose metrics rise to the given ones."""
    folder = root / recipe / f"seed-{seed}"
    folder.mkdir(parents=True)
    method = "pcgrad" if recipe in (PCGRAD, COSINE_PCGRAD) else "loss-sum"
    pairs = {
        "quora": "joint-raw-ids",
        "sts": "siamese-cos" if recipe in (COSINE, COSINE_PCGRAD) else "joint-raw-ids",
    }
    content = {
        "version": "0.1.0",
        "recipe": {
            "id": recipe,
            "description": config.pop("description", f"about {recipe}"),
            "tasks": list(metrics),
            "pairs": pairs,
            "stages": [{"epochs": 10, "method": method, "reduction": "mean", "lr": 1e-5}],
            "pooling": "cls",
            "assumed": ["stages.0.lr", "pooling"],
        },
        "deviations": ["The encoder is a smaller one."],
        "data": "some/folder",
        "data_notice": "SST, Quora and STS from some/folder",
        "encoder": "small-encoder",
        "seed": seed,
        "max_steps": 400,
        "device": "cpu",
        "precision": "fp32",
        "command": ["python", "-m", "benchmarks.multitask_bert", "run", recipe, "--out", "a b"],
    }
    environment = {
        "python": "3.11.7",
        "torch": "2.13.0",
        "platform": "Linux",
        "cpu": "A processor",
        "num_threads": 2,
        "gpu": None,
        "git_commit": "0123abc",
        "date": "2025-01-02T03:04:05+00:00",
    }
    (folder / "config.json").write_text(json.dumps({**content, **config}))
    (folder / "environment.json").write_text(json.dumps(environment))
    events = make_events(recipe, seed, metrics, num_steps, num_devs, conflicts, examples)
    if finished:
        events.append(
            {
                "event": "end",
                "step": num_steps,
                "epochs": num_devs,
                "best_epoch": num_devs,
                "metrics": metrics,
                "train_seconds": 570.0,
                "samples_per_second": 30.0 + seed,
                "eval_samples_per_second": 100.0,
            }
        )
    write_events(folder, events)
    return folder


def make_events(
    recipe: str,
    seed: int,
    metrics: Mapping[str, float],
    num_steps: int,
    num_devs: int,
    conflicts: bool,
    examples: Mapping[str, int] | None,
) -> list[dict[str, Any]]:
    random = np.random.default_rng([seed, *recipe.encode()])
    tasks = list(metrics)
    pairs = [f"{a}~{b}" for i, a in enumerate(tasks) for b in tasks[i + 1 :]]
    centres = {pair: random.normal(0.02, 0.05) for pair in pairs}
    met = dict.fromkeys(pairs, 0)
    sizes = examples or {"sst": 1101, "quora": 20212, "sts": 863}
    events: list[dict[str, Any]] = [
        {
            "event": "data",
            "task": task,
            "split": "dev",
            "examples": sizes[task],
            "skipped": 0,
            "constant_metric": CONSTANTS[task],
        }
        for task in tasks
    ]
    dev_steps = [round((i + 1) * num_steps / num_devs) for i in range(num_devs)]
    for count, step in enumerate(range(10, num_steps + 1, 10), start=1):
        cosines = {pair: float(random.normal(centres[pair], 0.15)) for pair in pairs}
        for pair in pairs:
            met[pair] += cosines[pair] < 0
        train: dict[str, Any] = {
            "event": "train",
            "stage": 0,
            "epoch": 1,
            "step": step,
            "seconds": 1.5 * step,
            "samples": 48 * step,
            "losses": {
                task: 0.4 + math.exp(-step / 150) + 0.1 * float(random.normal()) for task in tasks
            },
        }
        if conflicts:
            train["cosines"] = cosines
            train["conflict_rate"] = {pair: met[pair] / count for pair in pairs}
        events.append(train)
        if step in dev_steps:
            share = 1 - 0.6 * math.exp(-4 * step / num_steps) + 0.6 * math.exp(-4)
            reached = {
                task: CONSTANTS[task] + share * (metrics[task] - CONSTANTS[task]) for task in tasks
            }
            events.append(
                {
                    "event": "dev",
                    "stage": 0,
                    "epoch": dev_steps.index(step) + 1,
                    "step": step,
                    "seconds": 1.5 * step,
                    "metrics": reached,
                    "best": True,
                    "eval_seconds": 2.0,
                    "eval_samples": 150,
                }
            )
    return events


def write_events(folder: Path, events: Sequence[Mapping[str, Any]]) -> None:
    text = "".join(json.dumps(event) + "\n" for event in events)
    (folder / "metrics.jsonl").write_text(text)
