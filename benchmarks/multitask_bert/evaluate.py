"""Predictions of a model on a split, and their metric."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor

from benchmarks.multitask_bert.batches import Batch
from benchmarks.multitask_bert.metrics import accuracy, pearson
from benchmarks.multitask_bert.model import MultiTaskModel
from benchmarks.multitask_bert.tasks import TASKS, Task


@dataclass(frozen=True)
class Evaluation:
    """Predictions in the order of the split, their labels and metric."""

    predictions: list[float]
    labels: list[float]
    metric: float


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
) -> tuple[list[float], list[float]]:
    """Predicts every batch of one task's split.

    Args:
        model: put into evaluation mode, and back.
        batches: of one split, in any order.
        device: where the model is.
        precision: makes the context in which the model runs.

    Returns:
        Predictions and labels, both in the order of the split.
    """
    was_training = model.training
    model.eval()
    found: list[Tensor] = []
    labels: list[Tensor] = []
    indices: list[Tensor] = []
    with torch.inference_mode():
        for batch in batches:
            with precision():
                outputs = model(batch.to(device))
            found.append(predictions_of(TASKS[batch.task], outputs))
            labels.append(batch.labels)
            indices.append(batch.indices)
    model.train(was_training)
    order = torch.cat(indices).argsort()
    return torch.cat(found).cpu()[order].tolist(), torch.cat(labels).cpu().float()[order].tolist()


def evaluate(
    model: MultiTaskModel,
    batches: Iterable[Batch],
    device: torch.device,
    precision: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> Evaluation:
    """Predicts every batch of one task's split and measures it; arguments of :func:`predict`."""
    batches = iter(batches)
    first = next(batches)
    predictions, labels = predict(model, chain([first], batches), device, precision)
    metric = accuracy if TASKS[first.task].metric == "accuracy" else pearson
    return Evaluation(predictions, labels, metric(predictions, labels))
