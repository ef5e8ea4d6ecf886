"""Predictions and metrics against numpy on outputs that a stand-in model is made to give."""

from __future__ import annotations

from contextlib import contextmanager, nullcontext

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks.multitask_bert.batches.loader import BatchLoader, evaluation_batches
from benchmarks.multitask_bert.batches.tokenized import TokenizedSplit
from benchmarks.multitask_bert.data.files import Example, Split
from benchmarks.multitask_bert.model.tiny import word_tokenizer
from benchmarks.multitask_bert.tasks import TASKS
from benchmarks.multitask_bert.training.evaluate import evaluate, legacy_metrics, predictions_of

CPU = torch.device("cpu")
NUM_EXAMPLES = 23  # not a multiple of the batch size


class StandIn(nn.Module):
    """Gives each example the row of a table that its position in the split has."""

    def __init__(self, outputs: torch.Tensor) -> None:
        super().__init__()
        self.dropout = nn.Dropout(0.5)
        self.outputs = outputs
        self.modes: list[tuple[bool, bool, bool]] = []

    def forward(self, batch):
        self.modes.append((self.training, self.dropout.training, torch.is_inference_mode_enabled()))
        return self.outputs[batch.indices]


def make_split(task: str) -> tuple[TokenizedSplit, list[float]]:
    """Examples of very different lengths, so that evaluation does not take them in order."""
    generator = np.random.default_rng(0)
    highest = TASKS[task].label_max
    labels = [float(label) for label in generator.integers(0, highest + 1, NUM_EXAMPLES)]
    lengths = generator.integers(1, 12, NUM_EXAMPLES)
    examples = tuple(
        Example(str(i), ("a " * length,) * len(TASKS[task].text_columns), label)
        for i, (length, label) in enumerate(zip(lengths, labels, strict=True))
    )
    split = Split(task, "dev", examples, 0, "made here")
    return TokenizedSplit(split, word_tokenizer("a"), "joint-sep"), labels


def make_outputs(task: str, labels: list[float]) -> torch.Tensor:
    """Outputs that are right about as often as wrong."""
    generator = torch.Generator().manual_seed(1)
    expected = torch.tensor(labels)
    noise = torch.randn(NUM_EXAMPLES, TASKS[task].num_outputs, generator=generator)
    if TASKS[task].kind == "classes":
        return noise + nn.functional.one_hot(expected.long(), TASKS[task].num_outputs)
    if TASKS[task].kind == "binary":
        return noise[:, 0] + expected - 0.5
    return noise[:, 0] + expected


def by_numpy(task: str, outputs: torch.Tensor) -> np.ndarray:
    values = outputs.numpy()
    if TASKS[task].kind == "classes":
        return np.array([max(range(len(row)), key=lambda c: row[c]) for row in values])
    if TASKS[task].kind == "binary":
        return np.array([1.0 if value > 0 else 0.0 for value in values])
    return values


@pytest.mark.parametrize(
    ("task", "outputs", "predictions"),
    [
        ("sst", [[0.0, 3.0, -1.0, 2.9, 0.0], [0.0, 0.0, 0.0, 0.0, 1e-3]], [1.0, 4.0]),
        ("cfimdb", [[-5.0, -6.0], [0.1, 0.2]], [0.0, 1.0]),
        ("quora", [-1e-6, 0.0, 1e-6, 80.0], [0.0, 0.0, 1.0, 1.0]),
        ("sts", [-0.5, 5.5, 2.25], [-0.5, 5.5, 2.25]),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_predictions(task, outputs, predictions, dtype):
    found = predictions_of(TASKS[task], torch.tensor(outputs, dtype=dtype))
    assert found.dtype == torch.float32
    assert found.tolist() == predictions


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_predictions_and_metric_in_the_order_of_the_split(task, batch_size):
    tokenized, labels = make_split(task)
    outputs = make_outputs(task, labels)
    order = torch.cat([batch.indices for batch in evaluation_batches(tokenized, batch_size)])
    assert order.tolist() != sorted(order.tolist())  # else nothing has to be put back
    batches = evaluation_batches(tokenized, batch_size)
    found = evaluate(StandIn(outputs), batches, CPU, nullcontext)
    expected = by_numpy(task, outputs)
    assert found.predictions == expected.tolist()
    assert found.labels == labels
    if task == "sts":
        metric = np.corrcoef(expected.astype(np.float64), labels)[0, 1]
    else:
        metric = np.mean(expected == np.array(labels))
        assert 0.2 < metric < 1
    assert found.metric == pytest.approx(metric, abs=1e-12)


def test_legacy_evaluations_against_numpy():
    tokenized, labels = make_split("sts")
    outputs = make_outputs("sts", labels) + 0.37
    labels = [label + 0.8 * (i % 2) for i, label in enumerate(labels)]
    found = legacy_metrics(TASKS["sts"], outputs, torch.tensor(labels))
    squeezed, cut = 1 / (1 + np.exp(-outputs.numpy().astype(float))), np.floor(labels)
    assert found == {
        "sigmoid": pytest.approx(np.corrcoef(squeezed, labels)[0, 1], abs=1e-6),
        "integer-labels": pytest.approx(np.corrcoef(outputs.numpy(), cut)[0, 1], abs=1e-6),
        "both": pytest.approx(np.corrcoef(squeezed, cut)[0, 1], abs=1e-6),
    }
    batches = evaluation_batches(tokenized, 4)
    assert evaluate(StandIn(outputs), batches, CPU).legacy["sigmoid"] != found["sigmoid"]


def test_a_second_sigmoid_calls_nearly_everything_a_paraphrase():
    logits = torch.tensor([-200.0, -10.0, 0.0, 10.0])
    labels = torch.tensor([0.0, 0.0, 0.0, 1.0])
    # Only a probability of about 1e-7 or less is still rounded down.
    assert legacy_metrics(TASKS["quora"], logits, labels) == {"double-sigmoid": 0.5}
    assert legacy_metrics(TASKS["sst"], torch.zeros(4, 5), labels) == {}


def test_any_order_of_batches_gives_the_same():
    tokenized, labels = make_split("sst")
    model = StandIn(make_outputs("sst", labels))
    shuffled = BatchLoader(tokenized, 5, shuffle=True, seed=3)
    first = evaluate(model, evaluation_batches(tokenized, 4), CPU, nullcontext)
    assert evaluate(model, shuffled, CPU, nullcontext) == first


@pytest.mark.parametrize("training", [True, False])
def test_mode_is_put_back(training):
    tokenized, labels = make_split("quora")
    model = StandIn(make_outputs("quora", labels)).train(training)
    evaluate(model, evaluation_batches(tokenized, 4), CPU, nullcontext)
    assert set(model.modes) == {(False, False, True)}  # in evaluation mode, without autograd
    assert (model.training, model.dropout.training) == (training, training)


def test_random_state_is_not_drawn_from():
    tokenized, labels = make_split("sts")
    before = torch.get_rng_state()
    model = StandIn(make_outputs("sts", labels))
    evaluate(model, evaluation_batches(tokenized, 4), CPU, nullcontext)
    assert torch.equal(torch.get_rng_state(), before)


def test_precision_is_around_every_batch():
    tokenized, labels = make_split("sts")
    outputs = make_outputs("sts", labels)
    entered = []

    @contextmanager
    def precision():
        entered.append("in")
        yield
        entered.append("out")

    class Inside(StandIn):
        def forward(self, batch):
            entered.append("model")
            return super().forward(batch)

    evaluate(Inside(outputs), evaluation_batches(tokenized, 10), CPU, precision)
    assert entered == ["in", "model", "out"] * 3


def test_diverged_outputs_score_zero():
    """NaN is no number of a table; the run goes on and its record says what became of it."""
    tokenized, _ = make_split("sts")
    outputs = torch.full((NUM_EXAMPLES,), float("nan"))
    found = evaluate(StandIn(outputs), evaluation_batches(tokenized, 4), CPU, nullcontext)
    assert found.metric == 0
