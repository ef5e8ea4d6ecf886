"""Predictions of a model on a split, and their metric."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor

from benchmarks.multitask_bert.batches.tokens import Batch
from benchmarks.multitask_bert.metrics import accuracy, pearson
from benchmarks.multitask_bert.model.multitask import MultiTaskModel
from benchmarks.multitask_bert.tasks import TASKS, Task
from benchmarks.multitask_bert.training.processes import ALONE, Processes


@dataclass(frozen=True)
class Evaluation:
    """Predictions in the order of the split, their labels and metric."""

    predictions: list[float]
    labels: list[float]
    metric: float
    legacy: dict[str, float]  # what the starter code's older evaluations would have printed


def predictions_of(task: Task, outputs: Tensor) -> Tensor:  # [B] or [B, C] -> [B]
    """A class, 0 or 1, or the score itself, of the outputs of a model.

    Example:
        >>> predictions_of(TASKS["quora"], torch.tensor([-0.5, 2.0])).tolist()
        [0.0, 1.0]
    """
    if task.kind == "classes":
        return outputs.argmax(-1).float()
    if task.kind == "binary":
        return (outputs > 0).float()
    return outputs.float()


def predict(
    model: MultiTaskModel,
    batches: Iterable[Batch],
    device: torch.device,
    precision: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> list[float]:
    """Predicts every batch of one task's split.

    Args:
        model: put into evaluation mode, and back.
        batches: of one split, in any order; at least one.
        device: where the model is.
        precision: makes the context in which the model runs.

    Returns:
        Predictions in the order of the split.
    """
    task, outputs, _ = _outputs(model, batches, device, precision)
    return predictions_of(task, outputs).tolist()


def evaluate(
    model: MultiTaskModel,
    batches: Iterable[Batch],
    device: torch.device,
    precision: Callable[[], AbstractContextManager[object]] = nullcontext,
    processes: Processes = ALONE,
) -> Evaluation:
    """Predicts every batch of one task's split and measures it.

    Args:
        model, batches, device, precision: as in :func:`predict`.
        processes: among which the batches are divided; each gets the evaluation of all of them, and
            one of them may be without a batch.
    """
    task, outputs, labels = _outputs(model, batches, device, precision, processes)
    predictions, expected = predictions_of(task, outputs).tolist(), labels.tolist()
    metric = accuracy if task.metric == "accuracy" else pearson
    return Evaluation(
        predictions, expected, metric(predictions, expected), legacy_metrics(task, outputs, labels)
    )


def legacy_metrics(
    task: Task,
    outputs: Tensor,  # [N] or [N, C]
    labels: Tensor,  # [N]
) -> dict[str, float]:
    """Computes what evaluations with faults of the starter code's early versions print.

    ``sigmoid`` squeezes the similarity scores before Pearson's correlation, ``integer-labels`` cuts
    the fraction off their labels, ``both`` does both; ``double-sigmoid`` rounds a paraphrase
    probability that went through a second sigmoid. Published numbers may be any of these.

    Example:
        >>> legacy_metrics(TASKS["quora"], torch.tensor([-9.0, 9.0]), torch.tensor([0.0, 1.0]))
        {'double-sigmoid': 0.5}
    """
    if task.kind == "binary":
        twice = outputs.sigmoid().sigmoid().round()
        return {"double-sigmoid": accuracy(twice.tolist(), labels.tolist())}
    if task.kind == "score":
        squeezed, cut = outputs.sigmoid().tolist(), labels.trunc().tolist()
        return {
            "sigmoid": pearson(squeezed, labels.tolist()),
            "integer-labels": pearson(outputs.tolist(), cut),
            "both": pearson(squeezed, cut),
        }
    return {}


def _outputs(
    model: MultiTaskModel,
    batches: Iterable[Batch],
    device: torch.device,
    precision: Callable[[], AbstractContextManager[object]],
    processes: Processes = ALONE,
) -> tuple[Task, Tensor, Tensor]:  # [N] or [N, C], [N]
    """The task of a split, the model's outputs for it and its labels, on the CPU, in its order."""
    was_training = model.training
    model.eval()
    tasks: list[str] = []
    found: list[Tensor] = []
    labels: list[Tensor] = []
    indices: list[Tensor] = []
    with torch.inference_mode():
        for batch in batches:
            with precision():
                found.append(model(batch.to(device)).float())
            labels.append(batch.labels)
            indices.append(batch.indices)
            tasks.append(batch.task)
    model.train(was_training)
    # Without a batch there is nothing to put together here, but there is in another process.
    here = []
    if tasks:
        here.append((tasks[0], torch.cat(found).cpu(), torch.cat(labels), torch.cat(indices)))
    parts = chain.from_iterable(processes.gather(here))
    (task, *_), outputs, expected, places = zip(*parts, strict=True)
    order = torch.cat(places).argsort()
    return TASKS[task], torch.cat(outputs)[order], torch.cat(expected).float()[order]
