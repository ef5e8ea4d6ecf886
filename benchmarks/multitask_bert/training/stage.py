"""The steps of a stage: its optimizer, its batches in their order, its losses."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from benchmarks.multitask_bert.batches.loader import BatchLoader
from benchmarks.multitask_bert.batches.seeds import derive_seed
from benchmarks.multitask_bert.batches.tokenized import TokenizedSplit
from benchmarks.multitask_bert.batches.tokens import Batch
from benchmarks.multitask_bert.methods import METHODS
from benchmarks.multitask_bert.model.losses import LOSSES, PAIR_LOSSES, Loss
from benchmarks.multitask_bert.model.multitask import MultiTaskModel
from benchmarks.multitask_bert.model.regularisers import PROXIMITY, Proximity, smoothness
from benchmarks.multitask_bert.recipes.recipe import Stage
from benchmarks.multitask_bert.training.optimizers import make_adamw, make_optimizer
from benchmarks.multitask_bert.training.plan import OPTIONS, Plan
from benchmarks.multitask_bert.training.schedule import make_loader
from gradsurgery import MultiTaskLoader, MultiTaskOptimizer

# Those whose seeds are numbers in a row: the records that there are were made with them.
_NUMBERED = ("sst", "quora", "sts", "cfimdb")

Draw = tuple[str, Batch]  # a task, and a batch of it


class Steps:
    """Holds what a stage trains with, from its first step on.

    Of several processes each trains on its part of every batch, and the gradient of each task is
    that of the loss of the whole batch.

    Args:
        plan: the run.
        stage: of its recipe.
        model: what is trained; which of its parameters are is decided here.
        splits: the examples of each task.
    """

    def __init__(
        self,
        plan: Plan,
        stage: Stage,
        model: MultiTaskModel,
        splits: Mapping[tuple[str, str], TokenizedSplit],
    ) -> None:
        recipe = plan.recipe
        tasks = stage.tasks or recipe.tasks
        self.plan, self.stage, self.model = plan, stage, model
        parameters = list(model.trainable_parameters(stage.trainable))
        model.requires_grad_(False)
        for parameter in parameters:
            parameter.requires_grad_(True)
        base = make_adamw(recipe, stage, parameters)
        self.optimizer: MultiTaskOptimizer = make_optimizer(
            stage, base, tasks, plan.seed, plan.processes.group
        )
        loaders = {
            task: BatchLoader(
                splits[task, "train"],
                stage.batch_size[task],
                shuffle=True,
                seed=shuffle_seed(plan.seed, task),
                min_label=stage.min_label.get(task, -math.inf),
            )
            for task in tasks
        }
        self.num_batches = {task: len(loader) for task, loader in loaders.items()}
        self.loader: MultiTaskLoader[Batch] = make_loader(stage, loaders, plan.seed, plan.scale)
        self.tasks_per_step = len(tasks) if stage.sampling.name == "joint" else 1
        self._loss_weights = stage.loss_weights(tasks)
        momenta = [
            {**PROXIMITY, **regulariser.options}["momentum"]
            for regulariser in recipe.regularisers
            if regulariser.name == "bregman"
        ]
        self.proximity = Proximity(model, momenta[0]) if momenta else None
        self._draws: Iterator[Draw] = iter(())
        # Of the batches since the last "train" event, on the device until that event is written,
        # and of them what this process has trained on.
        self.loss_sums: dict[str, Tensor] = {}
        self.loss_counts: dict[str, int] = {}

    def begin_epoch(self, epoch: int) -> None:
        """Starts an epoch of the stage, counted from 0, or goes on in it."""
        self.loader.set_epoch(self.stage.sampling.first_epoch + epoch)
        self._draws = iter(self.loader)

    def next_batches(self) -> list[Draw]:
        """The batches of one step; none at the end of the epoch."""
        return list(islice(self._draws, self.tasks_per_step))

    def take(
        self, batches: Sequence[Draw], watched: Mapping[str, Iterable[Tensor]] | None = None
    ) -> int:
        """Takes one step.

        Args:
            batches: those of :meth:`next_batches`.
            watched: groups of parameters whose conflicts the diagnostics are to tell apart.

        Returns:
            The number of examples in the batches.
        """
        processes, optimizer = self.plan.processes, self.optimizer
        optimizer.zero_grad()
        optimizer.watch(watched or {})
        parts: list[tuple[str, Batch]] = []
        for task, batch in batches:
            part = batch.part(processes.rank, processes.number).to(self.plan.device)
            parts.append((task, part))
            self._add(task, part)
            self.loss_counts[task] = self.loss_counts.get(task, 0) + 1
        processes.meet()  # from here on the optimizer has all of them wait for each other
        grad_clip = self.plan.recipe.grad_clip
        if grad_clip is not None:
            optimizer.surgery()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), grad_clip)
        optimizer.step()
        if METHODS[self.stage.method].looks_again:
            self._look_again(parts)
        if self.proximity is not None:
            self.proximity.follow(self.model)
        return sum(len(batch) for _, batch in batches)

    def mean_losses(self) -> dict[str, float]:
        """Each task's mean loss since the last call."""
        here = {task: float(total) for task, total in self.loss_sums.items()}
        sums = self.plan.processes.gather(here)
        means = {
            task: sum(each.get(task, 0.0) for each in sums) / count
            for task, count in self.loss_counts.items()
        }
        self.loss_sums.clear()
        self.loss_counts.clear()
        return means

    def state_dict(self) -> dict[str, Any]:
        """Returns what an exact resume needs; it is the same in all processes."""
        return {
            "optimizer": self.optimizer.state_dict(),
            "loader": self.loader.state_dict(),
            "past": None if self.proximity is None else self.proximity.state_dict(),
            "loss_counts": self.loss_counts,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes it back.

        Raises:
            ValueError: the optimizer refuses its state, or the state has another seed.
        """
        options = [_options(group) for group in self.optimizer.param_groups]
        seed = self.optimizer.seed
        self.optimizer.load_state_dict(state["optimizer"])
        if self.optimizer.seed != seed:
            raise ValueError(f"another seed {self.optimizer.seed!r}")
        for group, own in zip(self.optimizer.param_groups, options, strict=True):
            group.update(own)  # the recipe says what they are
        self.loader.load_state_dict(state["loader"])
        if self.proximity is not None:
            self.proximity.load_state_dict(state["past"])
        self.loss_counts.update(state["loss_counts"])

    def _add(self, task: str, batch: Batch) -> None:
        """Adds the gradient of a batch, or of the part of it that is here, to the step."""
        with self.optimizer.task(task) as block:
            loss = self._loss(batch)
            if loss is None:
                return
            block.backward(self._factor(task, batch) * loss)
        found = batch.share * loss.detach()
        total = self.loss_sums.get(task)
        self.loss_sums[task] = found if total is None else total + found

    def _look_again(self, parts: Sequence[tuple[str, Batch]]) -> None:
        """Shows the optimizer the losses of a step's examples after the step.

        Dropout masks of later steps are those that there would be without it.
        """
        on_gpu = self.plan.device.type == "cuda"
        losses: dict[str, Tensor] = {}
        with torch.random.fork_rng([torch.cuda.current_device()] if on_gpu else []):
            for task, part in parts:
                loss = self._loss(part)
                if loss is not None:
                    found = self._factor(task, part) * loss.detach()
                    losses[task] = losses[task] + found if task in losses else found
        self.optimizer.look_again(losses)

    def _factor(self, task: str, batch: Batch) -> float:
        """Gives what a loss is multiplied by: the optimizer takes the mean over the processes, and
        is to get the sum of their parts."""
        return self.plan.processes.number * batch.share * self._loss_weights[task]

    def _loss(self, batch: Batch) -> Tensor | None:  # []
        """The mean loss of the examples here, with the recipe's regularisers; None of none."""
        recipe = self.plan.recipe
        name = self.stage.losses.get(batch.task, recipe.losses[batch.task])
        with self.plan.autocast():
            if name in PAIR_LOSSES:
                return self._pair_loss(PAIR_LOSSES[name], batch)
            if not len(batch):
                return None
            outputs = self.model(batch)
            loss = LOSSES[name](outputs.float(), batch.labels)
            for regulariser in recipe.regularisers:
                options = {**OPTIONS[regulariser.name], **regulariser.options}
                if regulariser.name == "smart":
                    # Its ascent is along the gradient of a mean over the whole batch.
                    options["step_size"] *= batch.share
                    term = smoothness(self.model, batch, outputs, options)
                else:
                    assert self.proximity is not None
                    term = self.proximity.term(batch, outputs)
                loss = loss + options["weight"] * term
        return loss

    def _pair_loss(self, loss: Loss, batch: Batch) -> Tensor | None:
        """The loss of the whole batch, each of whose pairs is compared with all the others.

        Every process computes it from everybody's vectors, and has its gradient by its own: over
        the processes these gradients add up to that of the loss, with nothing to send back.
        """
        here: list[Tensor] = []
        if len(batch):
            here = [vectors.float() for vectors in self.model.embed_pair(batch)]
        processes = self.plan.processes
        if processes.number == 1:
            return loss(*here)
        parts = processes.gather([vectors.detach().cpu() for vectors in here])
        if not here:
            return None
        there = [[x.to(self.plan.device) for x in part] for part in parts]
        there[processes.rank] = here
        found = loss(*(torch.cat(vectors) for vectors in zip(*filter(None, there), strict=True)))
        # Of a loss that is a mean over the examples here, the gradient would be a share.
        return found / batch.share + (1 - 1 / batch.share) * found.detach()


def shuffle_seed(seed: int, task: str) -> int:
    """Return the seed of a task's orders in a run: its own, however many other tasks there are.

    Example:
        >>> [shuffle_seed(11711, task) for task in ("sst", "quora", "sts", "cfimdb")]
        [46844, 46845, 46846, 46847]
    """
    if task in _NUMBERED:
        return seed * len(_NUMBERED) + _NUMBERED.index(task)
    return 2**64 + derive_seed(seed, task)  # above all of those


def _options(group: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in group.items() if name != "params"}
