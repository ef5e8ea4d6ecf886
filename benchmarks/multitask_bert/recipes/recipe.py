"""A recipe: everything that decides the outcome of a run but its data, its encoder and its seed."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from benchmarks.multitask_bert.methods import METHODS
from benchmarks.multitask_bert.recipes.choices import (
    EPOCHS,
    LOSSES,
    OUTPUTS,
    PAIR_ENCODINGS,
    POOLINGS,
    REGULARISERS,
    SAMPLINGS,
    SELECTIONS,
    STARTS,
)
from benchmarks.multitask_bert.recipes.numbers import is_count, is_number
from benchmarks.multitask_bert.tasks import TASKS


class RecipeError(ValueError):
    """A recipe, or a field of one, that does not exist or cannot be."""


@dataclass(frozen=True)
class Head:
    """The layers that turn a sentence embedding into a task's output.

    Args:
        layers: ``dropout``, ``relu`` or ``linear:WIDTH``, in order, where a width is a number,
            ``D`` for the encoder's or ``out`` for the task's. They act on the embedding, on two
            concatenated (``siamese-concat``) or on each (``siamese-dot``, ``siamese-cos``).
        output: what is made of their result; ``none`` leaves it.
    """

    layers: tuple[str, ...] = ("dropout", "linear:out")
    output: str = "none"


@dataclass(frozen=True)
class Sampling:
    """Which tasks' batches make a step, and how many steps an epoch has.

    Args:
        name: ``joint`` (one batch of each task in every step) or a sampler of one task a step.
        epoch: ends with the ``smallest`` or the ``largest`` data set, smaller ones starting again,
            or after a number of ``batches``.
        num_batches: that number.
        first_epoch, num_epochs: where the stage stands in an annealing that goes on over several.
    """

    name: str = "joint"
    epoch: str = "smallest"
    num_batches: int | None = None
    first_epoch: int = 0
    num_epochs: int | None = None


@dataclass(frozen=True)
class Regulariser:
    """A term added to every task's loss, with its options."""

    name: str
    options: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Stage:
    """A part of the training with a method, a sampler, a learning rate of its own.

    Args:
        epochs: their number.
        method: how the tasks' gradients become one update.
        lr: learning rate, constant.
        batch_size: examples a batch, by task.
        sampling: which batches make a step, how many steps make an epoch.
        tasks: those trained in it; empty means all of the recipe's.
        trainable: ``all``, or ``heads`` for a frozen encoder.
        losses: by task, where they differ from the recipe's.
        min_label: by task, the least label of the examples that are trained on.
        start: ``continue`` from the stage before, from the ``initial`` encoder, or from the
            ``average`` of the encoders that the ``initial`` stages before it ended with; the heads
            go on in any case.
        reduction, scope: of every method of surgery.
        weighting: what counts the same in the sum of the losses, each ``task`` or each ``sample``,
            of which a larger batch has more.
        monitored: whether a sum of the losses keeps the tasks' gradients apart to log their
            conflicts, and any method logs them layer by layer; it costs time and changes no update.
        method_options: of the method's class, where they differ from its defaults.
    """

    epochs: int = 10
    method: str = "loss-sum"
    lr: float = 1e-5
    batch_size: Mapping[str, int] = field(default_factory=dict)
    sampling: Sampling = Sampling()
    tasks: tuple[str, ...] = ()
    trainable: str = "all"
    losses: Mapping[str, str] = field(default_factory=dict)
    min_label: Mapping[str, float] = field(default_factory=dict)
    start: str = "continue"
    reduction: Literal["sum", "mean"] = "mean"
    scope: Literal["shared", "all"] = "all"
    weighting: Literal["task", "sample"] = "task"
    monitored: bool = True
    method_options: Mapping[str, Any] = field(default_factory=dict)

    def loss_weights(self, tasks: Sequence[str]) -> dict[str, float]:
        """Returns what each task's mean loss is multiplied by; 1 on average.

        Example:
            >>> stage = Stage(batch_size={"sst": 6, "sts": 2}, weighting="sample")
            >>> stage.loss_weights(["sst", "sts"])
            {'sst': 1.5, 'sts': 0.5}
        """
        if self.weighting == "task":
            return dict.fromkeys(tasks, 1.0)
        total = sum(self.batch_size[task] for task in tasks)
        return {task: self.batch_size[task] * len(tasks) / total for task in tasks}


@dataclass(frozen=True)
class Recipe:
    """One system: a model, its losses, and the stages of its training.

    Args:
        id: ``report/system``.
        description: one line.
        tasks: names, in order.
        pairs: encoding of each task of two sentences.
        pooling: which vector is the embedding.
        heads, losses: by task.
        stages: one after the other.
        head_dropout, encoder_dropout: rates; the second is both of hidden states and attention.
        betas, eps, weight_decay: of AdamW.
        grad_clip: largest norm of the combined gradient.
        regularisers: added to the losses.
        selection: which dev score keeps a checkpoint, or ``last``.
        max_length: tokens an input is cut to.
        dev_batches: by task, how many first batches of the dev split are evaluated while training;
            the best checkpoint is evaluated on all of it.
        frozen_layers: lowest layers that, with the embeddings, do not train and have no dropout.
        assumed: names of the fields that the report does not state.
    """

    id: str
    description: str
    tasks: tuple[str, ...]
    pairs: Mapping[str, str]
    heads: Mapping[str, Head]
    losses: Mapping[str, str]
    stages: tuple[Stage, ...]
    pooling: str = "pooler"
    head_dropout: float = 0.3
    encoder_dropout: float = 0.1
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-6
    weight_decay: float = 0.0
    grad_clip: float | None = None
    regularisers: tuple[Regulariser, ...] = ()
    selection: str = "mean"
    max_length: int = 512
    dev_batches: Mapping[str, int] = field(default_factory=dict)
    frozen_layers: int = 0
    assumed: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _check(self)

    def in_every_stage(self, **fields: Any) -> Recipe:
        """Returns the recipe with fields of all its stages set."""
        stages = tuple(dataclasses.replace(stage, **fields) for stage in self.stages)
        return dataclasses.replace(self, stages=stages)

    def to_dict(self) -> dict[str, Any]:
        """The recipe as JSON would have it."""
        made: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))
        options = [(stage, "method_options") for stage in made["stages"]]
        for place, name in [(made, "frozen_layers"), *options]:
            if not place[name]:  # older records stay those of the same recipe
                del place[name]
        return made

    @staticmethod
    def from_dict(fields: Mapping[str, Any]) -> Recipe:
        """The recipe that :meth:`to_dict` wrote.

        Raises:
            RecipeError: a field is missing, unknown or out of its range.
        """
        try:
            stages = tuple(
                Stage(
                    **{
                        **stage,
                        "sampling": Sampling(**stage["sampling"]),
                        "tasks": tuple(stage["tasks"]),
                    }
                )
                for stage in fields["stages"]
            )
            heads = {
                task: Head(tuple(head["layers"]), head["output"])
                for task, head in fields["heads"].items()
            }
            return Recipe(
                **{
                    **fields,
                    "tasks": tuple(fields["tasks"]),
                    "heads": heads,
                    "stages": stages,
                    "betas": tuple(fields["betas"]),
                    "regularisers": tuple(Regulariser(**r) for r in fields["regularisers"]),
                    "assumed": tuple(fields["assumed"]),
                }
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise RecipeError(
                f"recipe {fields.get('id')}: not of this version's form ({error})"
            ) from error


def _check(recipe: Recipe) -> None:
    """Every field within its range, every task with all it needs."""

    def check(holds: bool, field: str, rule: str, found: object) -> None:
        if not holds:
            raise RecipeError(f"recipe {recipe.id}: {field} must be {rule}, got {found!r}")

    def check_choice(field: str, found: str, choices: Sequence[str]) -> None:
        check(found in choices, field, f"one of {', '.join(choices)}", found)

    check(len(recipe.tasks) > 0, "tasks", "at least one", recipe.tasks)
    check_choice("pooling", recipe.pooling, POOLINGS)
    check_choice("selection", recipe.selection, (*SELECTIONS, *recipe.tasks))
    check(0 <= recipe.head_dropout < 1, "head_dropout", "in [0, 1)", recipe.head_dropout)
    check(0 <= recipe.encoder_dropout < 1, "encoder_dropout", "in [0, 1)", recipe.encoder_dropout)
    check(recipe.max_length >= 8, "max_length", "at least 8", recipe.max_length)
    frozen = recipe.frozen_layers
    check(is_count(frozen, 0), "frozen_layers", "a whole number from 0", frozen)
    check(recipe.weight_decay >= 0, "weight_decay", "at least 0", recipe.weight_decay)
    check(recipe.eps > 0, "eps", "above 0", recipe.eps)
    clip = recipe.grad_clip
    check(clip is None or (is_number(clip) and clip > 0), "grad_clip", "a number above 0", clip)
    betas = recipe.betas
    valid = len(betas) == 2 and all(is_number(beta) and 0 <= beta < 1 for beta in betas)
    check(valid, "betas", "two numbers in [0, 1)", betas)
    for task in recipe.tasks:
        check_choice("tasks", task, list(TASKS))
        check(task in recipe.heads, "heads", f"given for {task}", list(recipe.heads))
        kind = TASKS[task].kind
        check_choice(f"losses.{task}", recipe.losses.get(task, "missing"), LOSSES[kind])
        layers = recipe.heads[task].layers
        strings = all(isinstance(layer, str) for layer in layers)
        check(strings, f"heads.{task}.layers", "a list of texts", layers)
        check_choice(f"heads.{task}.output", recipe.heads[task].output, OUTPUTS)
        if TASKS[task].is_pair:
            check_choice(f"pairs.{task}", recipe.pairs.get(task, "missing"), PAIR_ENCODINGS)
    for regulariser in recipe.regularisers:
        check_choice("regularisers", regulariser.name, REGULARISERS)
    for task, number in recipe.dev_batches.items():
        check(number >= 1, f"dev_batches.{task}", "at least 1", number)
    check(len(recipe.stages) > 0, "stages", "at least one", recipe.stages)
    for number, stage in enumerate(recipe.stages):
        where = f"stages.{number}"
        check_choice(f"{where}.method", stage.method, list(METHODS))
        check_choice(f"{where}.sampling.name", stage.sampling.name, SAMPLINGS)
        check_choice(f"{where}.sampling.epoch", stage.sampling.epoch, EPOCHS)
        check_choice(f"{where}.start", stage.start, STARTS)
        possible = stage.start != "average" or "initial" in [
            s.start for s in recipe.stages[:number]
        ]
        check(possible, f"{where}.start", "average after stages that start initial", stage.start)
        check_choice(f"{where}.trainable", stage.trainable, ("all", "heads"))
        check_choice(f"{where}.reduction", stage.reduction, ("sum", "mean"))
        check_choice(f"{where}.scope", stage.scope, ("shared", "all"))
        check_choice(f"{where}.weighting", stage.weighting, ("task", "sample"))
        check(isinstance(stage.monitored, bool), f"{where}.monitored", "a bool", stage.monitored)
        options = stage.method_options
        check(isinstance(options, Mapping), f"{where}.method_options", "options by name", options)
        check(stage.epochs >= 0, f"{where}.epochs", "at least 0", stage.epochs)
        check(stage.lr > 0, f"{where}.lr", "above 0", stage.lr)
        counted = stage.sampling.epoch == "batches"
        num_batches = stage.sampling.num_batches
        valid = is_count(num_batches, 1) if counted else num_batches is None
        rule = "a whole number, with epoch=batches alone"
        check(valid, f"{where}.sampling.num_batches", rule, num_batches)
        for task in stage.tasks or recipe.tasks:
            check(task in recipe.tasks, f"{where}.tasks", "tasks of the recipe", task)
            loss = stage.losses.get(task, recipe.losses[task])
            check_choice(f"{where}.losses.{task}", loss, LOSSES[TASKS[task].kind])
            size = stage.batch_size.get(task, 0)
            check(size >= 1, f"{where}.batch_size.{task}", "at least 1", size)
