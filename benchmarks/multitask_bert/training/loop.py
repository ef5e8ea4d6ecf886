"""One run: a recipe's stages on a corpus, from the first step or from where it was interrupted."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tqdm import tqdm

from benchmarks.multitask_bert.batches.tokenized import TokenizedSplit
from benchmarks.multitask_bert.batches.tokens import Batch
from benchmarks.multitask_bert.model.multitask import MultiTaskModel
from benchmarks.multitask_bert.recipes.recipe import Stage
from benchmarks.multitask_bert.records.record import Record, RecordError
from benchmarks.multitask_bert.training.checkpoint import (
    PREVIOUS,
    STATE,
    Origin,
    load_state,
    save_state,
)
from benchmarks.multitask_bert.training.environment import environment, forget_peak
from benchmarks.multitask_bert.training.events import data_events, shown, train_event
from benchmarks.multitask_bert.training.interrupts import interrupts
from benchmarks.multitask_bert.training.plan import Plan
from benchmarks.multitask_bert.training.progress import Progress
from benchmarks.multitask_bert.training.run_state import Parts
from benchmarks.multitask_bert.training.schedule import total_steps
from benchmarks.multitask_bert.training.selection import Selection
from benchmarks.multitask_bert.training.state_checks import MALFORMED
from gradsurgery import MultiTaskLoader

LOG_EVERY = 10  # steps between two "train" events: the only moments that wait for the device


def run(plan: Plan, *, resume: bool = False) -> bool:
    """Trains, evaluates and records one recipe with one seed.

    Of several processes each calls it with its own plan, and the first one writes the folder.

    Args:
        plan: the run.
        resume: go on from the state in the folder, where there is one.

    Returns:
        Whether the run is complete; ``False`` when an interrupt ended it after a whole step.

    Raises:
        RecipeError: a part of the recipe that this version cannot run.
        RecordError: the folder's state is damaged, and so is the one before, where there is one.
        WriteError: a file cannot be written; the run can be resumed.
        ProcessError, CrashError, LostError: of several processes, instead of what one of them
            raises.
    """
    is_complete = False
    with plan.processes.together():
        training = Training(plan)
        training.begin(resume=resume)
        with interrupts(is_launched=plan.processes.number > 1) as interrupted:
            is_complete = training.finish(interrupted)
    return is_complete


class Training:
    """A run at work.

    Raises:
        RecipeError: a part of the recipe that this version cannot run.
    """

    def __init__(self, plan: Plan) -> None:
        forget_peak(plan.device)
        self.plan = plan
        self.record = Record(plan.folder)
        self._origin = Origin.of(plan.recipe.to_dict(), plan.seed)
        self._parts = Parts(plan)
        self._layers = self._parts.layers()
        self._selection = Selection(plan, self.model, self.splits, self._origin)

    @property
    def progress(self) -> Progress:
        """How far it is."""
        return self._parts.progress

    @property
    def model(self) -> MultiTaskModel:
        """The model that is trained."""
        return self._parts.model

    @property
    def splits(self) -> Mapping[tuple[str, str], TokenizedSplit]:
        """The examples by task and split."""
        return self._parts.splits

    @property
    def loader(self) -> MultiTaskLoader[Batch]:
        """The batches of the stage, in order."""
        return self._parts.steps.loader

    def begin(self, *, resume: bool) -> None:
        """Prepares the folder, or goes on from the state in it.

        Raises:
            RecordError: the state is damaged, and so is the one before, where there is one.
            WriteError: a file cannot be written.
        """
        record, processes = self.record, self.plan.processes
        if processes.is_first:
            record.remove_partial_files()
        goes_on = resume and processes.from_first(
            lambda: any((record.folder / name).exists() for name in (STATE, PREVIOUS))
        )
        if goes_on:
            self.load()
        if not processes.is_first:
            return
        if not (goes_on and record.exists):
            record.write_json("config.json", self.plan.config)
        if not goes_on:
            record.truncate(0)
            for event in data_events(self.plan.corpus, self.plan.recipe.tasks):
                record.append(event)
        record.write_json("environment.json", environment(self.plan.device))
        if told := self._parts.about_kept():
            tqdm.write(told)

    def finish(self, interrupted: Callable[[], bool]) -> bool:
        """Goes through the epochs that are left."""
        plan, progress = self.plan, self.progress
        sizes = {task: len(split) for (task, name), split in self.splits.items() if name == "train"}
        with tqdm(
            total=total_steps(plan.recipe, sizes, plan.scale, plan.max_steps),
            initial=progress.step,
            desc=f"{plan.recipe.id} seed {plan.seed}",
            unit="step",
            disable=None if plan.processes.is_first else True,
        ) as bar:
            while progress.stage < len(plan.recipe.stages):
                stage = plan.recipe.stages[progress.stage]
                while progress.epoch < stage.epochs and not self._is_at_limit():
                    if not self._train_epoch(stage, bar, interrupted):
                        self.save()
                        return False
                    self._selection.evaluate_epoch(progress)
                    progress.epoch += 1
                    self.save()
                self._parts.end_stage()
        self._selection.end(progress)
        if plan.processes.is_first:
            (self.record.folder / PREVIOUS).unlink(missing_ok=True)
        return True

    def save(self) -> None:
        """Writes the state from which :meth:`load` goes on exactly."""
        state = self._parts.state_dict()
        if not self.plan.processes.is_first:
            return
        num_bytes = self.record.metrics_bytes
        save_state(
            self.record.folder / STATE,
            {
                "origin": asdict(self._origin),
                **state,
                "metrics_bytes": num_bytes,
                "metrics_digest": self.record.metrics_digest(num_bytes),
            },
            self.record.folder / PREVIOUS,
        )

    def load(self) -> None:
        """Takes up the state that :meth:`save` wrote, or else the one before, and says so."""
        processes = self.plan.processes
        path, previous = self.record.folder / STATE, self.record.folder / PREVIOUS
        try:
            self._load(path)
        except RecordError as error:
            if not processes.from_first(previous.exists):
                raise
            self._load(previous)
            if processes.is_first:
                reason = str(error).removesuffix("; remove the run folder and run again")
                told = f"{reason}; went on from {previous}, step {self.progress.step}"
                print(told, file=sys.stderr)

    def _load(self, path: Path) -> None:
        processes = self.plan.processes
        state = processes.from_first(lambda: load_state(path, self._origin))
        with processes.together():
            try:
                num_bytes, digest = state["metrics_bytes"], state.get("metrics_digest")
                if not isinstance(num_bytes, int) or num_bytes < 0:
                    raise ValueError(f"metrics of {num_bytes!r} bytes")
                self._parts.load_state_dict(state)
            except MALFORMED as error:
                raise RecordError(
                    f"{path}: must be the state of this recipe's run, found another "
                    f"({type(error).__name__}: {' '.join(str(error).split())[:200]}); "
                    "remove the run folder and run again"
                ) from error
            if processes.is_first:
                self.record.check_metrics(num_bytes, digest)
                self.record.truncate(num_bytes)

    def _train_epoch(self, stage: Stage, bar: Any, interrupted: Callable[[], bool]) -> bool:
        """The steps that are left of an epoch; ``False`` when interrupted before its end."""
        progress, steps, processes = self.progress, self._parts.steps, self.plan.processes
        steps.begin_epoch(progress.epoch)
        started = time.perf_counter()

        def clock() -> None:
            nonlocal started
            now = time.perf_counter()
            progress.seconds += now - started
            started = now

        while not self._is_at_limit():
            if processes.any(interrupted()):
                clock()
                return False
            batches = steps.next_batches()
            if not batches:
                break
            # Layer by layer only where somebody is told, since each layer costs a pass.
            is_logged = self._is_logged(progress.step + 1)
            shares = stage.monitored and stage.trainable == "all"
            watched = self._layers if is_logged and shares else {}
            progress.samples += steps.take(batches, watched)
            progress.step += 1
            bar.update()
            if is_logged:
                losses = steps.mean_losses()
                clock()
                if processes.is_first:
                    event = train_event(progress, losses, steps.optimizer.diagnostics.summary())
                    self.record.append(event)
                    bar.set_postfix(shown(event), refresh=False)
        clock()
        return True

    def _is_at_limit(self) -> bool:
        limit = self.plan.max_steps
        return limit is not None and self.progress.step >= limit

    def _is_logged(self, step: int) -> bool:
        return step % LOG_EVERY == 0 or step == self.plan.max_steps
