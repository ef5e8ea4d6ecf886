"""Dev metrics after an epoch or between, and the model that they keep."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

from tqdm import tqdm

from benchmarks.multitask_bert.batches.loader import evaluation_batches
from benchmarks.multitask_bert.batches.tokenized import TokenizedSplit
from benchmarks.multitask_bert.metrics import overall_mean, overall_normalised
from benchmarks.multitask_bert.model.multitask import MultiTaskModel
from benchmarks.multitask_bert.records.record import Record
from benchmarks.multitask_bert.tasks import TASKS
from benchmarks.multitask_bert.training.checkpoint import Origin, load_model, save_model
from benchmarks.multitask_bert.training.environment import peak_bytes
from benchmarks.multitask_bert.training.evaluate import Evaluation, evaluate
from benchmarks.multitask_bert.training.events import (
    dev_event,
    end_event,
    legacy_of,
    metrics_of,
    num_samples_of,
)
from benchmarks.multitask_bert.training.plan import Plan
from benchmarks.multitask_bert.training.progress import Progress

EVALUATION_BATCH = 32


class Selection:
    """Evaluates a run's model, and keeps it where it is the best so far.

    Several processes divide the batches of an evaluation; all of them know all of its outcome, and
    the first writes it.

    Args:
        plan: the run.
        model: that is trained.
        splits: the examples of each task.
        origin: what the kept model says of itself.
    """

    def __init__(
        self,
        plan: Plan,
        model: MultiTaskModel,
        splits: Mapping[tuple[str, str], TokenizedSplit],
        origin: Origin,
    ) -> None:
        self.plan, self.model, self.origin = plan, model, origin
        self.splits = splits
        self.record = Record(plan.folder, plan.listener)

    @property
    def _path(self) -> Path:
        return self.plan.folder / "model.safetensors"

    def evaluate(self, progress: Progress) -> None:
        """Takes dev metrics; keeps the model if it is the best so far."""
        recipe, is_first = self.plan.recipe, self.plan.processes.is_first
        started = time.perf_counter()
        found = {task: self._evaluate(task, recipe.dev_batches.get(task)) for task in recipe.tasks}
        seconds = time.perf_counter() - started
        progress.eval_seconds += seconds
        progress.eval_samples += num_samples_of(found)
        done = sum(stage.epochs for stage in recipe.stages[: progress.stage])
        progress.num_epochs = done + progress.epoch + 1
        metrics = metrics_of(found)
        mean = overall_mean(metrics)
        scores = {
            "mean": mean,
            "normalised": overall_normalised(metrics),
            "last": float(progress.step),
            **metrics,
        }
        score = scores[recipe.selection]
        is_best = progress.best_score is None or score > progress.best_score
        if is_best:
            progress.best_score = score
            progress.best_epoch = progress.num_epochs
            progress.best_metrics = metrics
            progress.best_legacy = legacy_of(found)
        if not is_first:
            return
        if is_best:
            save_model(self._path, self.model, self.origin)
            if not recipe.dev_batches:
                self._write_predictions(found)
        self.record.append(dev_event(progress, found, seconds, is_best=is_best))
        shown = "  ".join(f"{TASKS[task].title} {metric:.3f}" for task, metric in metrics.items())
        tqdm.write(
            f"{recipe.id} seed {self.plan.seed} epoch {progress.num_epochs} step {progress.step}: "
            f"{shown}  mean {mean:.3f}{'  (best)' if is_best else ''}"
        )

    def end(self, progress: Progress) -> None:
        """Records the kept model's metrics; a run without a step is evaluated once."""
        recipe, processes = self.plan.recipe, self.plan.processes
        if not progress.best_metrics:
            self.evaluate(progress)
        if recipe.dev_batches:
            if processes.is_first:
                load_model(self._path, self.model, self.origin)
            processes.copy_first(self.model.state_dict().values())
            found = {task: self._evaluate(task) for task in recipe.tasks}
            progress.best_metrics = metrics_of(found)
            progress.best_legacy = legacy_of(found)
            if processes.is_first:
                self._write_predictions(found)
        if processes.is_first:
            self.record.append(end_event(progress, peak_bytes(self.plan.device)))

    def _evaluate(self, task: str, num_batches: int | None = None) -> Evaluation:
        processes = self.plan.processes
        batches = evaluation_batches(
            self.splits[task, "dev"],
            EVALUATION_BATCH,
            num_batches,
            rank=processes.rank,
            num_processes=processes.number,
        )
        plan = self.plan
        return evaluate(self.model, batches, plan.device, plan.autocast, processes)

    def _write_predictions(self, found: Mapping[str, Evaluation]) -> None:
        for task, each in found.items():
            examples = self.plan.corpus.splits[task, "dev"].examples
            ids = [example.id for example in examples]
            rows = zip(ids, each.predictions, each.labels, strict=True)
            self.record.write_predictions(task, "dev", rows)
