"""The plan of a run, and the check that it can be run at all."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

from benchmarks.multitask_bert.batches.tokenized import SINGLE, TokenizedSplit
from benchmarks.multitask_bert.data.files import Corpus
from benchmarks.multitask_bert.methods import METHODS
from benchmarks.multitask_bert.model.encoder import MinBert
from benchmarks.multitask_bert.model.kept import KeptOutputs
from benchmarks.multitask_bert.model.losses import PAIR_LOSSES
from benchmarks.multitask_bert.model.multitask import make_heads
from benchmarks.multitask_bert.model.regularisers import PROXIMITY, SMOOTHNESS
from benchmarks.multitask_bert.recipes.recipe import Recipe, RecipeError, Stage
from benchmarks.multitask_bert.tasks import TASKS
from benchmarks.multitask_bert.training.optimizers import make_optimizer
from benchmarks.multitask_bert.training.processes import ALONE, Processes

OPTIONS = {"smart": SMOOTHNESS, "bregman": PROXIMITY}


@dataclass
class Plan:
    """Holds what a run is made of.

    Args:
        recipe: with every deviation applied.
        corpus: examples of its tasks, train and dev.
        make_encoder: a fresh encoder and its tokenizer.
        folder: the run folder.
        max_steps: optimizer steps in all, whatever the epochs.
        scale: by which every epoch of every stage is shortened.
        tokenized: splits already tokenized, shared by the runs of one command.
        kept: outputs of frozen layers, shared by the runs of one command.
        config: what ``config.json`` says besides.
        processes: that run it together.
    """

    recipe: Recipe
    corpus: Corpus
    make_encoder: Callable[[Recipe], tuple[MinBert, Tokenizer]]
    folder: Path
    seed: int
    device: torch.device
    precision: str = "fp32"
    max_steps: int | None = None
    scale: float = 1.0
    tokenized: dict[tuple[str, str, str, int], TokenizedSplit] = field(default_factory=dict)
    kept: KeptOutputs = field(default_factory=KeptOutputs)
    config: Mapping[str, Any] = field(default_factory=dict)
    processes: Processes = ALONE

    def tokenize(self, task: str, split: str, tokenizer: Tokenizer) -> TokenizedSplit:
        """A split of a task, as the recipe pairs its sentences; kept for other runs."""
        pair = self.recipe.pairs.get(task, SINGLE) if TASKS[task].is_pair else SINGLE
        key = (task, split, pair, self.recipe.max_length)
        if key not in self.tokenized:
            examples = self.corpus.splits[task, split]
            self.tokenized[key] = TokenizedSplit(examples, tokenizer, pair, self.recipe.max_length)
        return self.tokenized[key]

    def autocast(self) -> AbstractContextManager[object]:
        """The context in which the model computes."""
        if self.precision == "bf16":
            return torch.autocast(self.device.type, torch.bfloat16)
        return nullcontext()


def check_runnable(recipe: Recipe) -> None:
    """Refuses what cannot be run, before anything is read or written.

    Raises:
        RecipeError: an option that a regulariser or method does not have, or a loss or head that
            cannot follow its pair encoding.
    """
    for regulariser in recipe.regularisers:
        known = OPTIONS[regulariser.name]
        for option in regulariser.options:
            if option not in known:
                raise RecipeError(
                    f"recipe {recipe.id}: regularisers.{regulariser.name} must have options of "
                    f"{', '.join(known)}, got {option!r}"
                )
    for losses in (recipe.losses, *(stage.losses for stage in recipe.stages)):
        for task, loss in losses.items():
            if loss in PAIR_LOSSES and recipe.pairs[task] not in ("siamese-dot", "siamese-cos"):
                raise RecipeError(
                    f"recipe {recipe.id}: losses.{task} must compare outputs with labels for "
                    f"{recipe.pairs[task]}, got {loss!r}, which compares two embeddings"
                )
    with torch.device("meta"):
        heads = make_heads(recipe, width=8)
    for number, stage in enumerate(recipe.stages):
        _check_options(recipe, number, stage)
        for task in stage.tasks or recipe.tasks:
            if stage.trainable == "heads" and not any(True for _ in heads[task].parameters()):
                raise RecipeError(
                    f"recipe {recipe.id}: stages.{number}.tasks must have heads to train, found "
                    f"{task}, whose head has no parameters; leave it out of the stage"
                )


def _check_options(recipe: Recipe, number: int, stage: Stage) -> None:
    """Refuses options that the stage's method does not have, or not with these values."""
    where = f"recipe {recipe.id}: stages.{number}.method_options"
    known = METHODS[stage.method].own_options()
    for option in stage.method_options:
        if option not in known:
            raise RecipeError(
                f"{where} must have options of {stage.method} ({', '.join(known) or 'none'}), got "
                f"{option!r}"
            )
    if stage.method_options:
        parameter, tasks = torch.nn.Parameter(torch.ones(1)), stage.tasks or recipe.tasks
        try:
            optimizer = make_optimizer(stage, torch.optim.SGD([parameter]), tasks, seed=0)
            optimizer.backward(dict.fromkeys(tasks, parameter.sum()))
        except (TypeError, ValueError) as error:
            raise RecipeError(f"{where}.{error}") from error
