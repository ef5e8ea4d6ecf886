"""One run: a recipe's stages on a corpus, from the first step or from where it was interrupted."""

from __future__ import annotations

import copy
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field, fields
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor
from tqdm import tqdm

from benchmarks.multitask_bert.batches import (
    Batch,
    BatchLoader,
    TokenizedSplit,
    evaluation_batches,
)
from benchmarks.multitask_bert.checkpoint import (
    PREVIOUS,
    STATE,
    Origin,
    load_model,
    load_state,
    random_states,
    save_model,
    save_state,
    set_random_states,
)
from benchmarks.multitask_bert.evaluate import Evaluation, evaluate
from benchmarks.multitask_bert.interrupts import interrupts
from benchmarks.multitask_bert.losses import LOSSES, PAIR_LOSSES
from benchmarks.multitask_bert.metrics import (
    constant_metric,
    is_degenerate,
    overall_mean,
    overall_normalised,
)
from benchmarks.multitask_bert.model import MultiTaskModel
from benchmarks.multitask_bert.plan import OPTIONS, Plan, check_runnable
from benchmarks.multitask_bert.recipe import RecipeError, Stage
from benchmarks.multitask_bert.record import Record, RecordError, environment
from benchmarks.multitask_bert.regularisers import (
    PROXIMITY,
    Proximity,
    smoothness,
)
from benchmarks.multitask_bert.schedule import make_loader, make_optimizer, steps_per_epoch
from benchmarks.multitask_bert.tasks import TASKS
from gradsurgery import MultiTaskLoader

LOG_EVERY = 10  # steps between two "train" events: the only moments that wait for the device
EVALUATION_BATCH = 32


@dataclass
class Progress:
    """How far a run is: everything that its next step depends on, besides tensors."""

    stage: int = 0
    epoch: int = 0  # of the stage, counted from 0
    step: int = 0  # since the start, counted from 1 once done
    samples: int = 0
    seconds: float = 0.0  # spent training
    eval_seconds: float = 0.0
    eval_samples: int = 0
    best_score: float | None = None
    best_epoch: int = 0
    num_epochs: int = 0  # over all stages
    best_metrics: dict[str, float] = field(default_factory=dict)
    best_legacy: dict[str, dict[str, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Raises ``ValueError`` where a field is no number or mapping of its kind."""
        number = (int, float)
        kinds: dict[str, Any] = {
            "int": int,
            "float": number,
            "float | None": (*number, type(None)),
        }
        for each in fields(self):
            value = getattr(self, each.name)
            is_kind = isinstance(value, kinds.get(str(each.type), dict))
            if not is_kind or isinstance(value, bool) or (isinstance(value, int) and value < 0):
                raise ValueError(f"progress with {each.name} {value!r}")


def run(plan: Plan, *, resume: bool = False) -> bool:
    """Trains, evaluates and records one recipe with one seed.

    Args:
        plan: the run.
        resume: go on from the state in the folder, where there is one.

    Returns:
        Whether the run is complete; ``False`` when an interrupt ended it after a whole step.

    Raises:
        RecipeError: a part of the recipe that this version cannot run.
        RecordError: the folder's state is damaged, and so is the one before, where there is one.
        WriteError: a file cannot be written; the run can be resumed.
    """
    training = Training(plan)
    record = training.record
    record.remove_partial_files()
    if resume and any((record.folder / name).exists() for name in (STATE, PREVIOUS)):
        training.load()
        if not record.exists:
            record.write_json("config.json", plan.config)
    else:
        record.write_json("config.json", plan.config)
        record.truncate(0)
        training.describe_data()
    record.write_json("environment.json", environment(plan.device))
    with interrupts() as interrupted:
        complete = training.finish(interrupted)
    return complete


class Training:
    """The moving parts of a run.

    Raises:
        RecipeError: a part of the recipe that this version cannot run.
    """

    def __init__(self, plan: Plan) -> None:
        recipe = plan.recipe
        check_runnable(recipe)
        self.plan = plan
        self.recipe = recipe
        self.record = Record(plan.folder)
        self._origin = Origin.of(recipe.to_dict(), plan.seed)
        self.progress = Progress()
        torch.manual_seed(plan.seed)
        encoder, tokenizer = plan.make_encoder(recipe)
        self.model = MultiTaskModel(encoder, recipe).to(plan.device)
        layers = self.model.encoder.layers
        self._layers = {
            "embeddings": list(self.model.encoder.embeddings.parameters()),
            **{f"layer {i}": list(layer.parameters()) for i, layer in enumerate(layers, start=1)},
            "pooler": list(self.model.encoder.pooler.parameters()),
        }
        self.splits = {
            (task, split): self._tokenized(task, split, tokenizer)
            for task in recipe.tasks
            for split in ("train", "dev")
        }
        longest = max(int(split.lengths.max()) for split in self.splits.values())
        if longest > encoder.config.max_positions:
            raise RecipeError(
                f"recipe {recipe.id}: max_length must be <= {encoder.config.max_positions} for "
                f"this encoder, got {recipe.max_length} and an input of {longest} tokens"
            )
        starts = [stage.start for stage in recipe.stages]
        self._initial_encoder = copy.deepcopy(encoder.state_dict()) if "initial" in starts else {}
        self._ended_encoders: list[Mapping[str, Tensor]] = []
        self._begin_stage()

    def describe_data(self) -> None:
        """Records what a metric must be read against."""
        for task in self.recipe.tasks:
            split = self.plan.corpus.splits[task, "dev"]
            labels = [e.label for e in split.examples if e.label is not None]
            constant = constant_metric(TASKS[task].kind, labels)
            for name in ("train", "dev"):
                part = self.plan.corpus.splits[task, name]
                event = {"event": "data", "task": task, "split": name}
                counts = {"examples": len(part.examples), "skipped": part.num_skipped}
                reference = {"constant_metric": constant} if name == "dev" else {}
                self.record.append({**event, **counts, **reference})

    def finish(self, interrupted: Callable[[], bool]) -> bool:
        """Goes through the epochs that are left."""
        recipe, progress = self.recipe, self.progress
        with tqdm(
            total=self._total_steps(),
            initial=progress.step,
            desc=f"{recipe.id} seed {self.plan.seed}",
            unit="step",
            disable=None,
        ) as bar:
            while progress.stage < len(recipe.stages):
                stage = recipe.stages[progress.stage]
                while progress.epoch < stage.epochs and not self._is_at_limit():
                    if not self._train_epoch(stage, bar, interrupted):
                        self.save()
                        return False
                    self._evaluate_epoch(bar)
                    progress.epoch += 1
                    self.save()
                if stage.start == "initial":
                    self._ended_encoders.append(copy.deepcopy(self.model.encoder.state_dict()))
                progress.stage += 1
                progress.epoch = 0
                if progress.stage < len(recipe.stages):
                    self._place_encoder()
                    self._begin_stage()
        self._end()
        return True

    def save(self) -> None:
        """Writes the state from which :meth:`load` goes on exactly."""
        num_bytes = self.record.metrics_bytes
        save_state(
            self.record.folder / STATE,
            {
                "origin": asdict(self._origin),
                "progress": vars(self.progress),
                "model": self.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "loader": self.loader.state_dict(),
                "random": random_states(self.plan.device),
                "ended_encoders": self._ended_encoders,
                "past": None if self._proximity is None else self._proximity.state_dict(),
                "loss_sums": self._loss_sums,
                "loss_counts": self._loss_counts,
                "metrics_bytes": num_bytes,
                "metrics_digest": self.record.metrics_digest(num_bytes),
            },
            self.record.folder / PREVIOUS,
        )

    def load(self) -> None:
        """Takes up the state that :meth:`save` wrote, or else the one before, and says so."""
        path, previous = self.record.folder / STATE, self.record.folder / PREVIOUS
        try:
            self._load(path)
        except RecordError as error:
            if not previous.exists():
                raise
            self._load(previous)
            reason = str(error).removesuffix("; remove the run folder and run again")
            print(f"{reason}; went on from {previous}, step {self.progress.step}", file=sys.stderr)

    def _load(self, path: Path) -> None:
        state = load_state(path, self._origin)
        try:
            num_bytes, digest = state["metrics_bytes"], state.get("metrics_digest")
            if not isinstance(num_bytes, int) or num_bytes < 0:
                raise ValueError(f"metrics of {num_bytes!r} bytes")
            self._take(state)
        except (KeyError, TypeError, AttributeError, ValueError, RuntimeError) as error:
            raise RecordError(
                f"{path}: must be the state of this recipe's run, found another "
                f"({type(error).__name__}: {' '.join(str(error).split())[:200]}); "
                "remove the run folder and run again"
            ) from error
        self.record.check_metrics(num_bytes, digest)
        self.record.truncate(num_bytes)

    def _take(self, state: Mapping[str, Any]) -> None:
        self.progress = Progress(**state["progress"])
        self._ended_encoders = list(state["ended_encoders"])
        for encoder in self._ended_encoders:
            self.model.encoder.load_state_dict(encoder)  # that they fit; it is overwritten below
        if self.progress.stage < len(self.recipe.stages):
            self._begin_stage()
            self.optimizer.load_state_dict(state["optimizer"])
            self.loader.load_state_dict(state["loader"])
        self.model.load_state_dict(state["model"])
        if self._proximity is not None:
            self._proximity.load_state_dict(state["past"])
        self._loss_sums.update(
            {task: total.to(self.plan.device) for task, total in state["loss_sums"].items()}
        )
        self._loss_counts.update(state["loss_counts"])
        set_random_states(state["random"], self.plan.device)

    def _place_encoder(self) -> None:
        """Puts the encoder where the stage starts from."""
        start = self.recipe.stages[self.progress.stage].start
        if start == "initial":
            self.model.encoder.load_state_dict(self._initial_encoder)
        elif start == "average":
            self.model.encoder.load_state_dict(_average(self._ended_encoders))
            self._ended_encoders = []

    def _begin_stage(self) -> None:
        stage = self.recipe.stages[self.progress.stage]
        tasks = stage.tasks or self.recipe.tasks
        self.model.requires_grad_(stage.trainable == "all")
        self.model.heads.requires_grad_(True)
        base = torch.optim.AdamW(
            self.model.trainable_parameters(stage.trainable),
            lr=stage.lr,
            betas=self.recipe.betas,
            eps=self.recipe.eps,
            weight_decay=self.recipe.weight_decay,
            fused=True,
        )
        self.optimizer = make_optimizer(stage, base, tasks, self.plan.seed)
        loaders = {
            task: BatchLoader(
                self.splits[task, "train"],
                stage.batch_size[task],
                shuffle=True,
                seed=self.plan.seed * len(TASKS) + list(TASKS).index(task),
                min_label=stage.min_label.get(task, -math.inf),
            )
            for task in tasks
        }
        self._loss_weights = stage.loss_weights(tasks)
        self.tasks_per_step = len(tasks) if stage.sampling.name == "joint" else 1
        self.loader: MultiTaskLoader[Batch] = make_loader(
            stage, loaders, self.plan.seed, self.plan.scale
        )
        momenta = [
            {**PROXIMITY, **regulariser.options}["momentum"]
            for regulariser in self.recipe.regularisers
            if regulariser.name == "bregman"
        ]
        self._proximity = Proximity(self.model, momenta[0]) if momenta else None
        # Of the batches since the last "train" event, on the device until that event is written.
        self._loss_sums: dict[str, Tensor] = {}
        self._loss_counts: dict[str, int] = {}

    def _train_epoch(self, stage: Stage, bar: Any, interrupted: Callable[[], bool]) -> bool:
        """The steps that are left of an epoch; ``False`` when interrupted before its end."""
        progress = self.progress
        self.loader.set_epoch(stage.sampling.first_epoch + progress.epoch)
        draws = iter(self.loader)
        started = time.perf_counter()

        def clock() -> None:
            nonlocal started
            now = time.perf_counter()
            progress.seconds += now - started
            started = now

        while not self._is_at_limit():
            if interrupted():
                clock()
                return False
            step = self._next_batches(draws)
            if not step:
                break
            self.optimizer.zero_grad()
            # Layer by layer only where somebody is told, since each layer costs a pass.
            is_logged = self._is_logged(progress.step + 1)
            self.optimizer.watch(self._layers if is_logged and stage.monitored else {})
            for task, batch in step:
                with self.optimizer.task(task):
                    loss = self._loss(stage, batch.to(self.plan.device))
                    (self._loss_weights[task] * loss).backward()
                total = self._loss_sums.get(task)
                self._loss_sums[task] = loss.detach() if total is None else total + loss.detach()
                self._loss_counts[task] = self._loss_counts.get(task, 0) + 1
                progress.samples += len(batch)
            if self.recipe.grad_clip is not None:
                self.optimizer.surgery()
                torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.grad_clip)
            self.optimizer.step()
            if self._proximity is not None:
                self._proximity.follow(self.model)
            progress.step += 1
            bar.update()
            if is_logged:
                means = {
                    task: float(total) / self._loss_counts[task]
                    for task, total in self._loss_sums.items()
                }
                clock()
                self._log(means, bar)
                self._loss_sums.clear()
                self._loss_counts.clear()
        clock()
        return True

    def _loss(self, stage: Stage, batch: Batch) -> Tensor:  # []
        """The loss of one batch, with the recipe's regularisers."""
        task = batch.task
        name = stage.losses.get(task, self.recipe.losses[task])
        with self._precision():
            if name in PAIR_LOSSES:
                u, v = self.model.embed_pair(batch)
                return PAIR_LOSSES[name](u.float(), v.float())
            outputs = self.model(batch)
            loss = LOSSES[name](outputs.float(), batch.labels)
            for regulariser in self.recipe.regularisers:
                options = {**OPTIONS[regulariser.name], **regulariser.options}
                if regulariser.name == "smart":
                    term = smoothness(self.model, batch, outputs, options)
                else:
                    assert self._proximity is not None
                    term = self._proximity.term(batch, outputs)
                loss = loss + options["weight"] * term
        return loss

    def _next_batches(self, draws: Iterator[tuple[str, Batch]]) -> list[tuple[str, Batch]]:
        """The batches of one step; none at the end of the epoch."""
        return list(islice(draws, self.tasks_per_step))

    def _log(self, losses: Mapping[str, float], bar: Any) -> None:
        progress = self.progress
        summary = self.optimizer.diagnostics.summary()
        found: dict[str, dict[str, float | None]] = {}
        for name, value in summary.items():
            kind, _, key = name.partition("/")
            if key:
                found.setdefault(kind, {})[key] = None if value != value else value
        self.record.append(
            {
                "event": "train",
                "stage": progress.stage,
                "epoch": progress.epoch + 1,
                "step": progress.step,
                "seconds": round(progress.seconds, 3),
                "samples": progress.samples,
                "losses": losses,
                "cosines": found.get("cosine", {}),
                "conflict_rate": found.get("conflict_rate"),
                "layer_cosines": {
                    kind.partition("@")[2]: cosines
                    for kind, cosines in found.items()
                    # A layer that no task reaches, such as the pooler of a mean, has none.
                    if kind.startswith("cosine@") and any(cosines.values())
                },
                "norms": found.get("norm"),
                "norms_after": found.get("norm_after"),
                "norm_before": summary.get("norm_before"),
                "norm_after": summary.get("norm_after"),
            }
        )
        shown = {task: f"{loss:.3f}" for task, loss in losses.items()}
        shown["samples/s"] = f"{progress.samples / max(progress.seconds, 1e-9):.0f}"
        rates = [rate for rate in found.get("conflict_rate", {}).values() if rate is not None]
        if rates:
            shown["conflicts"] = f"{sum(rates) / len(rates):.0%}"
        bar.set_postfix(shown, refresh=False)

    def _evaluate_epoch(self, bar: Any) -> None:
        """Dev metrics at the end of an epoch; keeps the model if it is the best so far."""
        progress, recipe = self.progress, self.recipe
        started = time.perf_counter()
        found = {task: self._evaluate(task, recipe.dev_batches.get(task)) for task in recipe.tasks}
        seconds = time.perf_counter() - started
        num_samples = sum(len(each.predictions) for each in found.values())
        metrics = {task: each.metric for task, each in found.items()}
        legacy = _legacy(found)
        progress.eval_seconds += seconds
        progress.eval_samples += num_samples
        progress.num_epochs += 1
        scores = {
            "mean": overall_mean(metrics),
            "normalised": overall_normalised(metrics),
            "last": float(progress.num_epochs),
            **metrics,
        }
        score = scores[recipe.selection]
        best = progress.best_score is None or score > progress.best_score
        if best:
            progress.best_score = score
            progress.best_epoch = progress.num_epochs
            progress.best_metrics = metrics
            progress.best_legacy = legacy
            save_model(self.record.folder / "model.safetensors", self.model, self._origin)
            if not recipe.dev_batches:
                self._write_predictions(found)
        self.record.append(
            {
                "event": "dev",
                "stage": progress.stage,
                "epoch": progress.epoch + 1,
                "step": progress.step,
                "seconds": round(progress.seconds, 3),
                "metrics": metrics,
                "mean": scores["mean"],
                "normalised": scores["normalised"],
                "best": best,
                "legacy": legacy,
                "degenerate": [
                    task
                    for task, each in found.items()
                    if is_degenerate(each.predictions, TASKS[task].kind)
                ],
                "eval_seconds": round(seconds, 3),
                "eval_samples": num_samples,
            }
        )
        shown = "  ".join(f"{TASKS[task].title} {metric:.3f}" for task, metric in metrics.items())
        bar.write(
            f"{recipe.id} seed {self.plan.seed} epoch {progress.num_epochs} step {progress.step}: "
            f"{shown}  mean {scores['mean']:.3f}{'  (best)' if best else ''}"
        )

    def _end(self) -> None:
        """Records the best checkpoint's metrics; a recipe without a step is evaluated once."""
        progress = self.progress
        if not progress.best_metrics:
            self._evaluate_epoch(tqdm(disable=True))
        if self.recipe.dev_batches:
            load_model(self.record.folder / "model.safetensors", self.model, self._origin)
            found = {task: self._evaluate(task) for task in self.recipe.tasks}
            progress.best_metrics = {task: each.metric for task, each in found.items()}
            progress.best_legacy = _legacy(found)
            self._write_predictions(found)
        rate = progress.samples / progress.seconds if progress.seconds else None
        self.record.append(
            {
                "event": "end",
                "step": progress.step,
                "epochs": progress.num_epochs,
                "best_epoch": progress.best_epoch,
                "metrics": progress.best_metrics,
                "mean": overall_mean(progress.best_metrics),
                "normalised": overall_normalised(progress.best_metrics),
                "legacy": progress.best_legacy,
                "train_seconds": round(progress.seconds, 3),
                "samples_per_second": rate,
                "eval_samples_per_second": progress.eval_samples / progress.eval_seconds,
            }
        )
        (self.record.folder / PREVIOUS).unlink(missing_ok=True)

    def _evaluate(self, task: str, num_batches: int | None = None) -> Evaluation:
        batches = evaluation_batches(self.splits[task, "dev"], EVALUATION_BATCH, num_batches)
        return evaluate(self.model, batches, self.plan.device, self._precision)

    def _write_predictions(self, found: Mapping[str, Evaluation]) -> None:
        for task, each in found.items():
            examples = self.plan.corpus.splits[task, "dev"].examples
            ids = [example.id for example in examples]
            rows = zip(ids, each.predictions, each.labels, strict=True)
            self.record.write_predictions(task, "dev", rows)

    def _tokenized(self, task: str, split: str, tokenizer: Tokenizer) -> TokenizedSplit:
        encoding = self.recipe.pairs.get(task, "single") if TASKS[task].is_pair else "single"
        key = (task, split, encoding, self.recipe.max_length)
        if key not in self.plan.tokenized:
            examples = self.plan.corpus.splits[task, split]
            self.plan.tokenized[key] = TokenizedSplit(
                examples, tokenizer, encoding, self.recipe.max_length
            )
        return self.plan.tokenized[key]

    def _precision(self) -> AbstractContextManager[object]:
        if self.plan.precision == "bf16":
            return torch.autocast(self.plan.device.type, torch.bfloat16)
        return nullcontext()

    def _is_at_limit(self) -> bool:
        limit = self.plan.max_steps
        return limit is not None and self.progress.step >= limit

    def _is_logged(self, step: int) -> bool:
        return step % LOG_EVERY == 0 or step == self.plan.max_steps

    def _total_steps(self) -> int:
        total = 0
        for stage in self.recipe.stages:
            tasks = stage.tasks or self.recipe.tasks
            lengths = [
                -(-len(self.splits[task, "train"]) // stage.batch_size[task]) for task in tasks
            ]
            total += stage.epochs * steps_per_epoch(stage, lengths, self.plan.scale)
        return total if self.plan.max_steps is None else min(total, self.plan.max_steps)


def _legacy(found: Mapping[str, Evaluation]) -> dict[str, dict[str, float]]:
    return {task: each.legacy for task, each in found.items() if each.legacy}


def _average(states: list[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The mean of several models' weights."""
    return {name: torch.stack([state[name] for state in states]).mean(0) for name in states[0]}
