"""The events that a run appends to ``metrics.jsonl``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from benchmarks.multitask_bert.data.files import Corpus
from benchmarks.multitask_bert.metrics import (
    constant_metric,
    is_degenerate,
    overall_mean,
    overall_normalised,
)
from benchmarks.multitask_bert.tasks import TASKS
from benchmarks.multitask_bert.training.evaluate import Evaluation
from benchmarks.multitask_bert.training.progress import Progress

Event = dict[str, Any]


def data_events(corpus: Corpus, tasks: Sequence[str]) -> Iterator[Event]:
    """Describe the dev data that a metric must be read against."""
    for task in tasks:
        labels = [e.label for e in corpus.splits[task, "dev"].examples if e.label is not None]
        constant = constant_metric(TASKS[task].kind, labels)
        for name in ("train", "dev"):
            part = corpus.splits[task, name]
            yield {
                "event": "data",
                "task": task,
                "split": name,
                "examples": len(part.examples),
                "skipped": part.num_skipped,
                **({"constant_metric": constant} if name == "dev" else {}),
            }


def train_event(
    progress: Progress, losses: Mapping[str, float], summary: Mapping[str, float]
) -> Event:
    """Tell how training goes.

    Args:
        progress: after a step.
        losses: by task, their means since the last such event.
        summary: of the optimizer's diagnostics.
    """
    found: dict[str, dict[str, float | None]] = {}
    for name, value in summary.items():
        kind, _, key = name.partition("/")
        if key:
            found.setdefault(kind, {})[key] = None if value != value else value
    return {
        **_when("train", progress),
        "samples": progress.samples,
        "losses": losses,
        "cosines": found.get("cosine", {}),
        "conflict_rate": found.get("conflict_rate"),
        "layer_cosines": {
            kind.partition("@")[2]: cosines
            for kind, cosines in found.items()
            # A layer that no task reaches, such as the pooler of a mean, has none.
            if kind.startswith("cosine@") and any(cosines.values())
        },
        "norms": found.get("norm"),
        "norms_after": found.get("norm_after"),
        "norm_before": summary.get("norm_before"),
        "norm_after": summary.get("norm_after"),
    }


def shown(event: Event) -> dict[str, str]:
    """Writes what the progress bar shows of a "train" event."""
    texts = {task: f"{loss:.3f}" for task, loss in event["losses"].items()}
    texts["samples/s"] = f"{event['samples'] / max(event['seconds'], 1e-9):.0f}"
    rates = [rate for rate in (event["conflict_rate"] or {}).values() if rate is not None]
    if rates:
        texts["conflicts"] = f"{sum(rates) / len(rates):.0%}"
    return texts


def dev_event(
    progress: Progress, found: Mapping[str, Evaluation], seconds: float, *, is_best: bool
) -> Event:
    """Tell the model's metrics on the dev splits.

    Args:
        progress: after an epoch.
        found: by task.
        seconds: that it took.
        is_best: whether the model is kept.
    """
    metrics = metrics_of(found)
    return {
        **_when("dev", progress),
        "metrics": metrics,
        "mean": overall_mean(metrics),
        "normalised": overall_normalised(metrics),
        "best": is_best,
        "legacy": legacy_of(found),
        "degenerate": [
            task
            for task, each in found.items()
            if is_degenerate(each.predictions, TASKS[task].kind)
        ],
        "eval_seconds": round(seconds, 3),
        "eval_samples": num_samples_of(found),
    }


def end_event(progress: Progress, peak_bytes: int | None) -> Event:
    """Close a complete run with the metrics of the model that was kept, and with what it cost."""
    return {
        "event": "end",
        "step": progress.step,
        "epochs": progress.num_epochs,
        "best_epoch": progress.best_epoch,
        "metrics": progress.best_metrics,
        "mean": overall_mean(progress.best_metrics),
        "normalised": overall_normalised(progress.best_metrics),
        "legacy": progress.best_legacy,
        "train_seconds": round(progress.seconds, 3),
        "peak_bytes": peak_bytes,
        "samples_per_second": _rate(progress.samples, progress.seconds),
        "eval_samples_per_second": _rate(progress.eval_samples, progress.eval_seconds),
    }


def metrics_of(found: Mapping[str, Evaluation]) -> dict[str, float]:
    """Each task's metric."""
    return {task: each.metric for task, each in found.items()}


def legacy_of(found: Mapping[str, Evaluation]) -> dict[str, dict[str, float]]:
    """Give the numbers that older evaluations would have printed, where a task has any."""
    return {task: each.legacy for task, each in found.items() if each.legacy}


def num_samples_of(found: Mapping[str, Evaluation]) -> int:
    """Count the examples that were evaluated."""
    return sum(len(each.predictions) for each in found.values())


def _rate(number: int, seconds: float) -> float | None:
    return number / seconds if seconds else None


def _when(event: str, progress: Progress) -> Event:
    """Give the fields that the events of a training begin with."""
    return {
        "event": event,
        "stage": progress.stage,
        "epoch": progress.epoch + 1,
        "step": progress.step,
        "seconds": round(progress.seconds, 3),
    }
