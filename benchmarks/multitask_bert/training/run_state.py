"""The state that a run changes as it goes on: model, progress, and the steps of its stage."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from benchmarks.multitask_bert.batches.seeds import derive_seed
from benchmarks.multitask_bert.model.kept import GIB
from benchmarks.multitask_bert.model.multitask import MultiTaskModel
from benchmarks.multitask_bert.recipes.recipe import RecipeError
from benchmarks.multitask_bert.training.checkpoint import (
    digest_of,
    random_states,
    set_random_states,
)
from benchmarks.multitask_bert.training.plan import Plan, check_runnable
from benchmarks.multitask_bert.training.progress import Progress
from benchmarks.multitask_bert.training.stage import Steps
from benchmarks.multitask_bert.training.state_checks import (
    check_encoders,
    check_losses,
    check_progress,
    check_steps,
    check_tensors,
)


class Parts:
    """The moving parts of a run, before its first step.

    Args:
        plan: the run.

    Raises:
        RecipeError: a part of the recipe that this version cannot run.
    """

    def __init__(self, plan: Plan) -> None:
        recipe = plan.recipe
        check_runnable(recipe)
        self.plan = plan
        self.progress = Progress()
        torch.manual_seed(plan.seed)
        encoder, tokenizer = plan.make_encoder(recipe)
        self.model = MultiTaskModel(encoder, recipe).to(plan.device)
        plan.processes.copy_first(self.model.state_dict().values())
        if not plan.processes.is_first:
            torch.manual_seed(_seed_of(plan.seed, plan.processes.rank))
        self.splits = {
            (task, split): plan.tokenize(task, split, tokenizer)
            for task in recipe.tasks
            for split in ("train", "dev")
        }
        longest = max(int(split.lengths.max()) for split in self.splits.values())
        if longest > encoder.config.max_positions:
            raise RecipeError(
                f"recipe {recipe.id}: max_length must be <= {encoder.config.max_positions} for "
                f"this encoder, got {recipe.max_length} and an input of {longest} tokens"
            )
        self._keep_outputs()
        starts = [stage.start for stage in recipe.stages]
        self._initial_encoder = copy.deepcopy(encoder.state_dict()) if "initial" in starts else {}
        self._ended_encoders: list[Mapping[str, Tensor]] = []
        self._begin_stage()

    def layers(self) -> dict[str, list[Tensor]]:
        """The parameters of each layer of the encoder that is not frozen."""
        encoder = self.model.encoder
        layers = {f"layer {i}": layer for i, layer in enumerate(encoder.layers, start=1)}
        parts = list({"embeddings": encoder.embeddings, **layers}.items())
        trained = parts[encoder.num_frozen + 1 if encoder.num_frozen else 0 :]
        return {name: list(x.parameters()) for name, x in [*trained, ("pooler", encoder.pooler)]}

    def about_kept(self) -> str:
        """Says how much of the outputs of frozen layers is kept; empty where none are frozen."""
        if self.model.kept is None:
            return ""
        each = 4 * self.model.encoder.config.hidden_size  # bytes of a token's
        splits = self.splits.items()
        again = {task for (task, _), split in splits if split.encoding == "joint-raw-ids"}
        num_bytes = each * sum(int(x.lengths.sum()) for (t, _), x in splits if t not in again)
        most, bound = num_bytes / GIB, self.model.kept.max_bytes / GIB
        text = f"frozen layers: outputs of at most {most:.2g} GiB, kept in up to {bound:g} GiB"
        if most > bound:
            text += "; the others are made again whenever they are needed (--kept-memory)"
        if again:
            text += f"; {', '.join(sorted(again))}: made in every step, for joint-raw-ids"
        return text

    def end_stage(self) -> None:
        """Goes from a stage that has ended to the next one, if there is one."""
        progress, stages = self.progress, self.plan.recipe.stages
        if stages[progress.stage].start == "initial":
            self._ended_encoders.append(copy.deepcopy(self.model.encoder.state_dict()))
        progress.stage += 1
        progress.epoch = 0
        if progress.stage < len(stages):
            self._place_encoder()
            self._begin_stage()

    def state_dict(self) -> dict[str, Any]:
        """All that :meth:`load_state_dict` needs to go on exactly; every process must ask."""
        sums = {task: total.cpu() for task, total in self.steps.loss_sums.items()}
        here = {"random": random_states(self.plan.device), "loss_sums": sums}
        first, *others = self.plan.processes.gather(here)
        return {
            "progress": vars(self.progress),
            "model": self.model.state_dict(),
            **self.steps.state_dict(),
            **first,
            "others": others,
            "ended_encoders": self._ended_encoders,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes it back.

        Raises:
            One of ``state_checks.MALFORMED``: it is that of another run, or of none.
        """
        processes, recipe, device = self.plan.processes, self.plan.recipe, self.plan.device
        parts = [{name: state[name] for name in ("random", "loss_sums")}, *state.get("others", [])]
        if len(parts) != processes.number:
            raise ValueError(f"that of {len(parts)} process(es) for {processes.number}")
        own = parts[processes.rank]
        progress, encoders = Progress(**state["progress"]), state["ended_encoders"]
        check_progress(progress, recipe)
        check_encoders(encoders, recipe, progress.stage, self.model.encoder.state_dict())
        check_tensors("model", state["model"], self.model.state_dict())
        self.progress, self._ended_encoders = progress, encoders
        self._begin_stage()
        check_steps(state, self.steps)
        check_losses(parts, state["loss_counts"])
        self.steps.load_state_dict(state)
        self.model.load_state_dict(state["model"])
        self._keep_outputs()
        sums = {task: total.to(device) for task, total in own["loss_sums"].items()}
        self.steps.loss_sums.update(sums)
        set_random_states(own["random"], device)

    def _place_encoder(self) -> None:
        """Puts the encoder where the stage starts from."""
        start = self.plan.recipe.stages[self.progress.stage].start
        if start == "initial":
            self.model.encoder.load_state_dict(self._initial_encoder)
        elif start == "average":
            # The mean of equal numbers need not be that number to the last bit.
            frozen = self.model.frozen_parameters()
            average = {**_average(self._ended_encoders), **frozen}
            self.model.encoder.load_state_dict(average)
            self._ended_encoders = []

    def _keep_outputs(self) -> None:
        """Keeps the outputs of the frozen layers, if there are any, from here on."""
        frozen = self.model.frozen_parameters()
        if frozen:
            digest = digest_of({name: p.detach().cpu() for name, p in frozen.items()})
            self.plan.kept.belong_to((digest, self.plan.precision, self.plan.device))
            self.model.kept = self.plan.kept

    def _begin_stage(self) -> None:
        stage = self.plan.recipe.stages[self.progress.stage]
        self.steps = Steps(self.plan, stage, self.model, self.splits)


def _average(states: list[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The mean of several models' weights."""
    return {name: torch.stack([state[name] for state in states]).mean(0) for name in states[0]}


def _seed_of(seed: int, rank: int) -> int:
    """Seeds what a process draws by itself, such as dropout; the first goes on with the seed."""
    return derive_seed(seed, "process", rank) >> 1
