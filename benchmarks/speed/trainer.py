"""The benchmark's own trainer beside a plain loop over `transformers`, on the same examples.

The plain loop is what people write: `BertModel`, its fast tokenizer called for each batch, padding
to the longest of the batch, torch's default AdamW, evaluation in the order of the data.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.multitask_bert.batches.loader import BatchLoader, evaluation_batches
from benchmarks.multitask_bert.batches.tokenized import TokenizedSplit
from benchmarks.multitask_bert.data.corpus import load_corpus
from benchmarks.multitask_bert.data.files import Example, Split
from benchmarks.multitask_bert.model.encoders import make_encoder
from benchmarks.multitask_bert.model.losses import LOSSES
from benchmarks.multitask_bert.model.multitask import MultiTaskModel
from benchmarks.multitask_bert.recipes.catalog import find
from benchmarks.multitask_bert.recipes.overrides import override
from benchmarks.multitask_bert.recipes.recipe import Recipe
from benchmarks.multitask_bert.tasks import TASKS
from benchmarks.multitask_bert.training.evaluate import evaluate, predictions_of
from benchmarks.speed.answers import TOLERANCE, WrongAnswerError
from benchmarks.speed.measure import Action, Timings, interleaved
from benchmarks.speed.targets import Finding, Row, Settings, Target, not_measured
from gradsurgery import LossSum

Precision = Callable[[], AbstractContextManager[object]]
PRECISIONS: Mapping[str, Precision] = {
    "fp32": nullcontext,
    "bf16": lambda: torch.autocast("cpu", torch.bfloat16),
}

_RECIPE = "smet-walker/general-linear-loss-sum"
_MAX_LENGTH = 512
_HEAD_DROPOUT = 0.3


@dataclass(frozen=True)
class Sizes:
    """How much is done before the other's turn.

    Args:
        steps: optimizer steps.
        batch_size: of each task in a step.
        eval_batches: of each task.
        eval_batch_size: of each.
    """

    steps: int = 6
    batch_size: int = 16
    eval_batches: int = 5
    eval_batch_size: int = 32


class PlainTrainer:
    """A loop over `transformers`.

    Args:
        encoder: checkpoint folder.
        train, dev: examples of each task.
        sizes: of batches.
        seed: of the heads and of the order of the examples.
    """

    def __init__(
        self,
        encoder: Path,
        train: Mapping[str, Split],
        dev: Mapping[str, Split],
        sizes: Sizes,
        seed: int,
    ) -> None:
        from transformers import AutoTokenizer, BertModel

        torch.manual_seed(seed)
        self.tokenizer: Any = AutoTokenizer.from_pretrained(str(encoder))
        self.bert: Any = BertModel.from_pretrained(str(encoder))
        self.heads = nn.ModuleDict(
            {
                task: nn.Sequential(
                    nn.Dropout(_HEAD_DROPOUT),
                    nn.Linear(self.bert.config.hidden_size, TASKS[task].num_outputs),
                )
                for task in train
            }
        )
        self.optimizer = torch.optim.AdamW(
            [*self.bert.parameters(), *self.heads.parameters()], lr=1e-5
        )
        self.train_splits, self.dev_splits, self.sizes = train, dev, sizes
        self.generator = torch.Generator().manual_seed(seed)

    def encode(self, examples: Sequence[Example]) -> Tensor:  # [B, D]
        """The pooled vectors of texts or joint pairs."""
        sides = [
            list(texts) for texts in zip(*(example.texts for example in examples), strict=True)
        ]
        tokens = self.tokenizer(
            *sides, padding=True, truncation=True, max_length=_MAX_LENGTH, return_tensors="pt"
        )
        pooled: Tensor = self.bert(**tokens).pooler_output
        return pooled

    def outputs(self, task: str, examples: Sequence[Example]) -> Tensor:  # [B] or [B, C]
        outputs: Tensor = self.heads[task](self.encode(examples))
        return outputs.squeeze(-1) if TASKS[task].num_outputs == 1 else outputs

    def train(self, precision: Precision) -> None:
        """One pass over the training examples."""
        self.bert.train()
        self.heads.train()
        batches = {task: self._shuffled(split) for task, split in self.train_splits.items()}
        for _ in range(self.sizes.steps):
            self.optimizer.zero_grad()
            total = torch.zeros(())
            for task, its_batches in batches.items():
                examples = next(its_batches)
                labels = torch.tensor([example.label for example in examples])
                with precision():
                    outputs = self.outputs(task, examples)
                total = total + LOSSES[_LOSS[TASKS[task].kind]](outputs.float(), labels)
            total.backward()
            self.optimizer.step()

    def evaluate(self, precision: Precision) -> dict[str, list[float]]:
        """Predictions of every dev example."""
        self.bert.eval()
        self.heads.eval()
        size = self.sizes.eval_batch_size
        found: dict[str, list[float]] = {}
        with torch.no_grad():
            for task, split in self.dev_splits.items():
                found[task] = []
                for start in range(0, len(split.examples), size):
                    with precision():
                        outputs = self.outputs(task, split.examples[start : start + size])
                    found[task] += predictions_of(TASKS[task], outputs.float()).tolist()
        return found

    def _shuffled(self, split: Split) -> Iterator[list[Example]]:
        order = torch.randperm(len(split.examples), generator=self.generator)
        for places in order.split(self.sizes.batch_size):
            yield [split.examples[place] for place in places.tolist()]


_LOSS = {"classes": "cross-entropy", "binary": "bce", "score": "mse"}


class OurTrainer:
    """The benchmark's model, batches, losses and evaluation around the library's loss sum.

    Args:
        encoder: checkpoint folder.
        train, dev: examples of each task.
        sizes: of batches.
        seed: of the heads and of the order of the examples.
        num_trained: layers that are trained, from above; None trains all, and the embeddings.
    """

    def __init__(
        self,
        encoder: Path,
        train: Mapping[str, Split],
        dev: Mapping[str, Split],
        sizes: Sizes,
        seed: int,
        num_trained: int | None = None,
    ) -> None:
        torch.manual_seed(seed)
        self.recipe = _recipe(tuple(train))
        trunk, tokenizer = make_encoder(str(encoder), self.recipe)
        if num_trained is not None:
            num_frozen = max(trunk.config.num_layers - num_trained, 1)
            self.recipe = replace(self.recipe, frozen_layers=num_frozen)
        self.model = MultiTaskModel(trunk, self.recipe)
        parameters = self.model.trainable_parameters("all")
        base = torch.optim.AdamW(parameters, lr=1e-5, fused=True)
        self.optimizer = LossSum(base, tasks=tuple(train))
        self.sizes = sizes
        self.epoch = 0
        started = time.perf_counter()
        tokenized = [
            {
                task: TokenizedSplit(split, tokenizer, self.recipe.pairs.get(task, ""), _MAX_LENGTH)
                for task, split in splits.items()
            }
            for splits in (train, dev)
        ]
        self.tokenizing_seconds = time.perf_counter() - started
        self.dev = tokenized[1]
        self.loaders = {
            task: BatchLoader(split, sizes.batch_size, shuffle=True, seed=seed)
            for task, split in tokenized[0].items()
        }

    def train(self, precision: Precision) -> None:
        """One pass over the training examples."""
        self.model.train()
        for loader in self.loaders.values():
            loader.set_epoch(self.epoch)
        self.epoch += 1
        for batches in zip(*self.loaders.values(), strict=True):
            self.optimizer.zero_grad()
            for batch in batches:
                with self.optimizer.task(batch.task):
                    with precision():
                        outputs = self.model(batch)
                    loss = LOSSES[self.recipe.losses[batch.task]](outputs.float(), batch.labels)
                    loss.backward()
            self.optimizer.step()

    def evaluate(self, precision: Precision) -> dict[str, list[float]]:
        """Predictions of every dev example."""
        device = torch.device("cpu")
        size = self.sizes.eval_batch_size
        return {
            task: evaluate(
                self.model, evaluation_batches(split, size), device, precision
            ).predictions
            for task, split in self.dev.items()
        }


def compare(
    data: Path,
    encoder: Path,
    *,
    sizes: Sizes,
    rounds: int,
    seed: int = 0,
    precisions: Sequence[str] = tuple(PRECISIONS),
) -> tuple[Timings, dict[str, int], float]:
    """Both trainers in turns, each time over the same examples.

    Args:
        data: folder of the data files, or `synthetic`.
        encoder: checkpoint folder.
        sizes: of one turn.
        rounds: that count.
        seed: of everything random.
        precisions: of ``PRECISIONS``.

    Returns:
        Timings of actions named ``plain training fp32`` and so on; the number of samples of a turn
        of ``training`` and ``evaluation``; seconds that ours took to tokenize all of them, once.

    Raises:
        WrongAnswerError: the two encoders disagree; nothing is timed then.
    """
    train, dev = some_examples(data, sizes, seed)
    plain = PlainTrainer(encoder, train, dev, sizes, seed)
    ours = OurTrainer(encoder, train, dev, sizes, seed)
    check_encoders(plain, ours)
    actions = {}
    for precision in precisions:
        context = PRECISIONS[precision]
        for part in ("training", "evaluation"):
            for name, trainer in (("plain", plain), ("ours", ours)):
                run = trainer.train if part == "training" else trainer.evaluate
                actions[f"{name} {part} {precision}"] = Action(partial(run, context))
    timings = interleaved(actions, rounds=rounds)
    numbers = {
        "training": sum(len(split.examples) for split in train.values()),
        "evaluation": sum(len(split.examples) for split in dev.values()),
    }
    return timings, numbers, ours.tokenizing_seconds


def some_examples(data: Path, sizes: Sizes, seed: int) -> tuple[dict[str, Split], dict[str, Split]]:
    """Draws the training and the dev examples of a turn, by task."""
    tasks = ("sst", "quora", "sts")
    corpus = load_corpus(str(data), tasks)
    generator = torch.Generator().manual_seed(seed)
    train, dev = (
        {task: _some(corpus.splits[task, name], number, generator) for task in tasks}
        for name, number in (
            ("train", sizes.steps * sizes.batch_size),
            ("dev", sizes.eval_batches * sizes.eval_batch_size),
        )
    )
    return train, dev


def check_encoders(plain: PlainTrainer, ours: OurTrainer) -> None:
    """Compares what both make of the same sentences before any training.

    Raises:
        WrongAnswerError: they disagree, so that they do not do the same work.
    """
    split = ours.dev["sst"]
    plain.bert.eval()
    ours.model.eval()
    with torch.no_grad():
        batch = split.batch(torch.arange(min(8, len(split))))
        found = ours.model.encoder(batch.first.ids, batch.first.mask).pooled
        expected = plain.encode(split.split.examples[: len(batch)])
    error = float((found - expected).norm() / expected.norm())
    if not error <= TOLERANCE:
        raise WrongAnswerError(
            f"encoder: must give what transformers' gives, found a relative error of {error:.3g}"
        )


def trainer_experiment(settings: Settings, keys: frozenset[str]) -> dict[str, Finding]:
    """Samples a second of both, in float32 and in bfloat16."""
    if settings.data is None or settings.encoder is None:
        return dict.fromkeys(keys, not_measured("needs --data and --encoder"))
    sizes = Sizes(2, 4, 1, 8) if settings.quick else Sizes()
    chosen = [precision for precision in PRECISIONS if any(precision in key for key in keys)]
    timings, numbers, tokenizing = compare(
        settings.data,
        settings.encoder,
        sizes=sizes,
        rounds=settings.rounds,
        seed=settings.seed,
        precisions=chosen,
    )
    note = (
        f"trainer: {numbers['training']} training and {numbers['evaluation']} evaluation samples "
        f"a turn; ours tokenized them once in {tokenizing:.2f} s, which is not in the ratios; "
        "the plain loop tokenizes each batch"
    )
    found = {}
    for key in keys:
        part, precision = key.rsplit("-", 1)
        names = [f"{name} {part} {precision}" for name in ("plain", "ours")]
        ratio = timings.ratio(names[0], to=names[1])
        rates = [numbers[part] / timings.of(name).median for name in names]
        measured = f"{ratio:.2f} ({rates[1]:.1f} / {rates[0]:.1f} samples/s)"
        found[key] = Finding(measured, ratio.median, (note,))
    return found


def _recipe(tasks: tuple[str, ...]) -> Recipe:
    recipe, _ = override(find(_RECIPE), ["pairs=joint-sep"])
    return replace(recipe, tasks=tasks, head_dropout=_HEAD_DROPOUT)


def _some(split: Split, number: int, generator: torch.Generator) -> Split:
    """So many of the examples, drawn without replacement, in the order of the data."""
    places = torch.randperm(len(split.examples), generator=generator)[:number].sort().values
    return replace(split, examples=tuple(split.examples[place] for place in places.tolist()))


ROWS = [
    Row(f"{part}-{precision}", f"trainer / plain transformers loop, {part} samples/s, {precision}",
        Target("≥", bound), "cpu", trainer_experiment)
    for part, bound in (("training", 1.5), ("evaluation", 2))
    for precision in PRECISIONS
]  # fmt: skip
