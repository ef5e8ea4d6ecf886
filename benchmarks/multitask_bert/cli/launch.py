"""The command `run`: what it asks for, checked, and one run after the other."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch

from benchmarks.multitask_bert.cli.arguments import FAILED, INTERRUPTED, one_line
from benchmarks.multitask_bert.data import corpus as corpora
from benchmarks.multitask_bert.model.encoders import make_encoder
from benchmarks.multitask_bert.model.kept import GIB, KeptOutputs
from benchmarks.multitask_bert.model.multitask import freeze
from benchmarks.multitask_bert.model.tiny import SIZES, settings
from benchmarks.multitask_bert.recipes.catalog import SIDE_BY_SIDE, find_all
from benchmarks.multitask_bert.recipes.overrides import override
from benchmarks.multitask_bert.recipes.void import check_not_void, check_steps
from benchmarks.multitask_bert.records.lock import alone_in
from benchmarks.multitask_bert.records.record import Record, RecordError
from benchmarks.multitask_bert.records.run import settings_of
from benchmarks.multitask_bert.tasks import BUILT_IN_DATA
from benchmarks.multitask_bert.training import loop
from benchmarks.multitask_bert.training.plan import Plan, check_runnable
from benchmarks.multitask_bert.training.processes import LostError, Processes, here, local_rank
from benchmarks.multitask_bert.training.schedule import stage_steps
from gradsurgery import __version__

# What an earlier version did not write into config.json, because there was one choice only.
_BEFORE = {"num_processes": 1}


def launch(options: argparse.Namespace, given: list[str]) -> int:
    """Does the runs that a command asks for; returns its exit status.

    Args:
        options: the command's.
        given: the same as it was typed.

    Raises:
        ValueError, OSError: what cannot be run, in one line; before anything is written, or where
            there is one run alone.
    """
    processes, status = here(), FAILED
    with processes.together(), ExitStack() as folders:
        plans = _plans(options, given, processes)
        processes.meet()  # what one of them refuses is refused before the first takes a folder
        if processes.is_first:
            for plan in plans:
                if not _is_complete(plan):
                    folders.enter_context(alone_in(plan.folder))
                    _check_folder(plan, resume=options.resume)  # until now it might have changed
        status = _run_all(plans, options)
    return status


def _run_all(plans: Sequence[Plan], options: argparse.Namespace) -> int:
    """Runs what is not complete yet, one after the other."""
    processes = plans[0].processes
    _say(processes, plans[0].corpus.notice)
    failed = []
    for plan in plans:
        name = f"{plan.recipe.id} seed {plan.seed}"
        if processes.from_first(partial(_is_complete, plan)):
            _say(processes, f"{name}: complete, left as it is")
            continue
        try:
            is_complete = loop.run(plan, resume=options.resume)
        except LostError:
            raise
        except (ValueError, OSError, RuntimeError) as error:
            if len(plans) == 1:
                raise
            failed.append(name)
            _say(processes, f"error: {name}: {one_line(error)}", is_error=True)
            continue
        if not is_complete:
            text = f"interrupted: {plan.folder} can be continued with the same command and --resume"
            _say(processes, text, is_error=True)
            return INTERRUPTED
    if failed:
        _say(processes, f"failed: {', '.join(failed)}", is_error=True)
        return FAILED
    then = f"python -m benchmarks.multitask_bert report {options.out}"
    _say(processes, f"done: for tables and plots, {then}")
    return 0


def _say(processes: Processes, text: str, *, is_error: bool = False) -> None:
    if processes.is_first:
        print(text, file=sys.stderr if is_error else sys.stdout, flush=True)


def _plans(options: argparse.Namespace, given: list[str], processes: Processes) -> list[Plan]:
    """Plans what the command asks for, all of it checked before anything is written."""
    encoder = options.encoder or BUILT_IN_DATA.get(options.data, "bert-base-uncased")
    is_small = encoder in SIZES
    if is_small and options.data not in BUILT_IN_DATA:
        raise ValueError(
            f"--encoder: must be a BERT-format checkpoint with --data DIR, got {encoder}, which "
            "knows the words of the built-in corpora alone"
        )
    recipes = []
    for found in find_all(options.recipes or SIDE_BY_SIDE):
        asked = settings(found, SIZES[encoder].lr) if is_small else []
        if options.epochs is not None and any(stage.epochs for stage in found.stages):
            asked.append(f"epochs={options.epochs}")
        recipe, deviations = override(found, [*asked, *options.set])
        check_runnable(recipe)
        check_not_void(recipe, found)
        recipes.append((recipe, deviations))
    device = _device(options.device, processes)
    if threads := options.threads or (1 if is_small else None):
        torch.set_num_threads(threads)
    tasks = list(dict.fromkeys(task for recipe, _ in recipes for task in recipe.tasks))
    corpus = corpora.load_corpus(options.data, tasks)
    sizes = {task: len(corpus.splits[task, "train"].examples) for task in tasks}
    for recipe, _ in recipes:
        check_steps(recipe, stage_steps(recipe, sizes, options.scale, options.max_steps))
    # A checkpoint that cannot be used is refused here, and so are layers that it does not have.
    made, _ = make_encoder(encoder, recipes[0][0])
    for recipe, _ in recipes:
        freeze(made, recipe)
    tokenized: dict[Any, Any] = {}
    kept = KeptOutputs(int(options.kept_memory * GIB))
    plans = []
    for recipe, deviations in recipes:
        for seed in range(options.seed, options.seed + options.seeds):
            config = {
                "version": __version__,
                "recipe": recipe.to_dict(),
                "deviations": deviations,
                "data": options.data,
                "data_notice": corpus.notice,
                "encoder": encoder,
                "seed": seed,
                "max_steps": options.max_steps,
                "scale": options.scale,
                "num_processes": processes.number,
                "device": _devices(device, processes),
                "precision": options.precision,
                "command": _command(given, processes),
            }
            plan = Plan(
                recipe=recipe,
                corpus=corpus,
                make_encoder=partial(make_encoder, encoder),
                folder=options.out / recipe.id / f"seed-{seed}",
                seed=seed,
                device=device,
                precision=options.precision,
                max_steps=options.max_steps,
                scale=options.scale,
                tokenized=tokenized,
                kept=kept,
                config=config,
                processes=processes,
            )
            if processes.is_first:
                _check_folder(plan, resume=options.resume)
            plans.append(plan)
    return plans


def _device(name: str | None, processes: Processes) -> torch.device:
    """Where this process computes: of several, each on a GPU of its own."""
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        if processes.number > 1:
            if device.type not in ("cpu", "cuda") or device.index is not None:
                raise ValueError(
                    f"--device: must be cpu or cuda where there are {processes.number} processes, "
                    f"got {name}; each takes the GPU of its own number"
                )
            if device.type == "cuda":
                device = torch.device("cuda", local_rank())
                torch.cuda.set_device(device)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(
            f"--device: must be one that this machine has, got {name} ({one_line(error)})"
        ) from error
    return device


def _devices(device: torch.device, processes: Processes) -> str:
    if processes.number == 1:
        return str(device)
    return f"{processes.number} processes on {device.type}"


def _command(given: list[str], processes: Processes) -> list[str]:
    """Returns what started these processes."""
    module = ["-m", "benchmarks.multitask_bert", *given]
    if processes.number == 1:
        return ["python", *module]
    on_each = int(os.environ.get("LOCAL_WORLD_SIZE", processes.number))
    machines = [] if on_each == processes.number else [f"--nnodes={processes.number // on_each}"]
    return ["torchrun", *machines, f"--nproc-per-node={on_each}", *module]


def _is_complete(plan: Plan) -> bool:
    return Record(plan.folder).is_complete


def _identity(config: Mapping[str, Any]) -> dict[str, Any]:
    return {name: config.get(name) for name in ("recipe", "deviations", "data", "seed")}


def _check_folder(plan: Plan, *, resume: bool) -> None:
    """Refuses a folder with another run in it, or with one that nobody asked to go on with."""
    record = Record(plan.folder)
    if not record.exists:
        return
    if not (resume or record.is_complete):
        raise RecordError(
            f"{plan.folder}: must be free or hold a complete run, found an unfinished one; add "
            "--resume to go on with it, or choose another --out"
        )
    before = {**_BEFORE, **record.read_json("config.json")}
    number, here = before["num_processes"], plan.config["num_processes"]
    if number != here:
        raise RecordError(
            f"{plan.folder}: must be a run on {here} process{'' if here == 1 else 'es'}, found one "
            f"on {number}; start that many with torchrun, or choose another --out"
        )
    asked, found = ({**settings_of(each), **_identity(each)} for each in (plan.config, before))
    different = sorted(key for key in asked if found[key] != asked[key])
    if different:
        raise RecordError(
            f"{plan.folder}: must be a run of the same {', '.join(different)}, found another; give "
            "the arguments it was started with, or choose another --out"
        )
