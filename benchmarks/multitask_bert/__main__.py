"""The command line: `run`, `report`, `analyze`, `predict`, `list` and `fetch`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    import torch

    from benchmarks.multitask_bert.plan import Plan
    from benchmarks.multitask_bert.recipe import Recipe

FIRST_SEED = 11711
FAILED = 1
REFUSED = 2
INTERRUPTED = 130

_RUN_EPILOG = """\
examples:
  run                                        loss sum and PCGrad side by side on the built-in corpus
  run --seeds 3 --out runs/three             the same with three seeds
  run smet-walker/v2-dropout-0.3 --data DIR --encoder bert-base-uncased --device cuda
  run smet-walker/v2-dropout-0.3 --data DIR --encoder DIR --max-steps 400 --set pooling=mean

DIR of --data holds the course's files: ids-sst-train.csv, quora-train.csv, sts-train.csv, ...
A run leaves OUT/RECIPE/seed-N/ with config.json, environment.json, metrics.jsonl,
model.safetensors and predictions/; `report OUT` makes tables and plots of them.
A run that is complete in OUT is not run again. Ctrl-C ends a run after the step it is in; the same
command with --resume goes on from there.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    options = _parser().parse_args(given)
    command: Callable[[argparse.Namespace, list[str]], int] = options.command
    try:
        status = command(options, given)
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        # Whoever read our output, such as `head`, has had enough of it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ValueError, OSError) as error:
        print(f"error: {_one_line(error)}", file=sys.stderr)
        return REFUSED
    except KeyboardInterrupt:
        return INTERRUPTED


class _Parser(argparse.ArgumentParser):
    """Refuses arguments in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(REFUSED, f"error: {message}; see {self.prog} --help\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m benchmarks.multitask_bert",
        description="minBERT on SST (sentiment), Quora (paraphrase) and STS (similarity): "
        "multi-task training with and without gradient surgery.",
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    run = commands.add_parser(
        "run",
        help="train and evaluate recipes",
        description="Trains and evaluates recipes.",
        epilog=_RUN_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    run.set_defaults(command=_run)
    run.add_argument(
        "recipes",
        nargs="*",
        metavar="RECIPE",
        help="ids from `list` or patterns such as 'benton/*'; default: loss sum and PCGrad side "
        "by side",
    )
    run.add_argument(
        "--data",
        default="synthetic",
        metavar="DIR",
        help="folder with the data files, or `synthetic` for the built-in corpus (default)",
    )
    run.add_argument(
        "--encoder",
        metavar="DIR_OR_NAME",
        help="BERT-format checkpoint folder or hub name; default: bert-base-uncased, and for the "
        "built-in corpus `tiny`, a small encoder trained from scratch",
    )
    run.add_argument(
        "--seeds", type=_positive, default=1, metavar="N", help="runs of each recipe (default 1)"
    )
    run.add_argument(
        "--seed",
        type=_seed,
        default=FIRST_SEED,
        metavar="S",
        help=f"seed of the first run, the next ones count up (default {FIRST_SEED})",
    )
    run.add_argument(
        "--epochs", type=_positive, metavar="E", help="epochs of every stage, for the recipe's"
    )
    run.add_argument(
        "--max-steps", type=_positive, metavar="N", help="stop a run after N optimizer steps"
    )
    run.add_argument(
        "--scale",
        type=_scale,
        default=1.0,
        metavar="F",
        help="shorten every epoch by the factor F, such as 0.05; the report says so",
    )
    run.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help="set a field of every recipe, such as pooling=mean, lr=2e-5, lr*=10 or "
        "pairs.sts=joint-sep; "
        "recorded as a deviation; may be given more than once",
    )
    run.add_argument("--device", metavar="D", help="cpu, cuda, cuda:1, ...; default: cuda if any")
    run.add_argument(
        "--threads",
        type=_positive,
        metavar="N",
        help="CPU threads; default: torch's, and 1 for the tiny encoder, which has no work for two",
    )
    run.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="default: fp32")
    run.add_argument(
        "--out", type=Path, default=Path("runs"), metavar="DIR", help="default: ./runs"
    )
    run.add_argument(
        "--resume",
        action="store_true",
        help="go on with unfinished runs in --out",
    )

    report = commands.add_parser(
        "report",
        help="tables and plots of finished and unfinished runs",
        description="Makes report.md, plots/*.png, and report.html, a page that needs no other "
        "file, of the run folders below DIR.",
    )
    report.set_defaults(command=_report)
    report.add_argument("directories", nargs="+", type=Path, metavar="DIR")
    report.add_argument(
        "--out", type=Path, metavar="DIR", help="where to write; default: the first DIR"
    )

    analyze = commands.add_parser(
        "analyze",
        help="where finished runs go wrong",
        description="Makes analysis.md and plots/*.png of each finished run. The files quote texts "
        "of the data.",
    )
    analyze.set_defaults(command=_analyze)
    analyze.add_argument(
        "runs", nargs="+", type=Path, metavar="RUN", help="run folders, or folders that hold them"
    )
    analyze.add_argument(
        "--data", metavar="DIR", help="where the runs' data are now; default: where they were"
    )
    analyze.add_argument(
        "--out", type=Path, metavar="DIR", help="where to write; default: each run's own folder"
    )

    predict = commands.add_parser(
        "predict",
        help="prediction files in the starter code's form",
        description="Writes the dev and test predictions of a finished run, in the form that the "
        "starter code hands in.",
    )
    predict.set_defaults(command=_predict)
    predict.add_argument("run", type=Path, metavar="RUN", help="a run folder")
    predict.add_argument(
        "--data", metavar="DIR", help="where the data are; default: where the run had them"
    )
    predict.add_argument(
        "--out", type=Path, metavar="DIR", help="default: the run folder's predictions/"
    )
    predict.add_argument("--split", choices=("dev", "test"), help="that one alone, instead of both")

    listing = commands.add_parser(
        "list", help="every recipe with one line", description="Lists every recipe."
    )
    listing.set_defaults(command=_list)
    listing.add_argument(
        "--long", action="store_true", help="with the fields that its report does not state"
    )

    fetching = commands.add_parser(
        "fetch",
        help="download the public data files",
        description="Downloads the data files that DIR does not have yet; run it again to go on.",
    )
    fetching.set_defaults(command=_fetch)
    fetching.add_argument("directory", type=Path, metavar="DIR")
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, got {text!r}")
    return int(text)


def _scale(text: str) -> float:
    try:
        factor = float(text)
    except ValueError:
        factor = 0.0
    if not 0 < factor <= 1:
        raise argparse.ArgumentTypeError(f"must be a number above 0 and at most 1, got {text!r}")
    return factor


def _seed(text: str) -> int:
    if not text.isdecimal() or int(text) >= 1 << 32:
        raise argparse.ArgumentTypeError(f"must be a whole number below 2**32, got {text!r}")
    return int(text)


def _list(options: argparse.Namespace, given: list[str]) -> int:
    from benchmarks.multitask_bert.systems import all_recipes

    recipes = all_recipes()
    width = max(map(len, recipes))
    for recipe in recipes.values():
        print(f"{recipe.id:{width}}  {recipe.description}")
        if options.long:
            print(f"{'':{width}}  assumed: {', '.join(recipe.assumed)}")
    return 0


def _report(options: argparse.Namespace, given: list[str]) -> int:
    from benchmarks.multitask_bert.report import report

    print(report(options.directories, options.out))
    return 0


def _analyze(options: argparse.Namespace, given: list[str]) -> int:
    from benchmarks.multitask_bert.analysis import analyze_all

    print(analyze_all(options.runs, options.data, options.out))
    return 0


def _predict(options: argparse.Namespace, given: list[str]) -> int:
    from benchmarks.multitask_bert.predictions import write_predictions

    splits = (options.split,) if options.split else ("dev", "test")
    out = options.out or options.run / "predictions"
    for path in write_predictions(options.run, options.data, out, splits):
        print(path)
    return 0


def _fetch(options: argparse.Namespace, given: list[str]) -> int:
    from benchmarks.multitask_bert.fetch import describe, fetch

    for path in fetch(options.directory):
        print(describe(path))
    return 0


def _run(options: argparse.Namespace, given: list[str]) -> int:
    from benchmarks.multitask_bert.locks import alone_in

    plans = _plans(options, given)
    with ExitStack() as folders:
        for plan in plans:
            if not _is_complete(plan):
                folders.enter_context(alone_in(plan.folder))
                _check_folder(plan, resume=options.resume)  # until now it might have changed
        return _run_all(plans, options)


def _run_all(plans: Sequence[Plan], options: argparse.Namespace) -> int:
    """Runs what is not complete yet, one after the other."""
    from benchmarks.multitask_bert.train import run

    print(plans[0].corpus.notice, flush=True)
    failed = []
    for plan in plans:
        name = f"{plan.recipe.id} seed {plan.seed}"
        if _is_complete(plan):
            print(f"{name}: complete, left as it is")
            continue
        try:
            is_complete = run(plan, resume=options.resume)
        except (ValueError, OSError, RuntimeError) as error:
            if len(plans) == 1:
                raise
            failed.append(name)
            print(f"error: {name}: {_one_line(error)}", file=sys.stderr)
            continue
        if not is_complete:
            print(
                f"interrupted: {plan.folder} can be continued with the same command and --resume",
                file=sys.stderr,
            )
            return INTERRUPTED
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
        return FAILED
    print(f"done: for tables and plots, python -m benchmarks.multitask_bert report {options.out}")
    return 0


def _plans(options: argparse.Namespace, given: list[str]) -> list[Plan]:
    """What the command asks for, all of it checked before anything is written."""
    from benchmarks.multitask_bert.corpora import load_corpus
    from benchmarks.multitask_bert.encoders import make_encoder
    from benchmarks.multitask_bert.plan import Plan, check_runnable
    from benchmarks.multitask_bert.overrides import override
    from benchmarks.multitask_bert.systems import SIDE_BY_SIDE, find_all
    from gradsurgery import __version__

    is_builtin = options.data == "synthetic"
    encoder = options.encoder or ("tiny" if is_builtin else "bert-base-uncased")
    if encoder == "tiny" and not is_builtin:
        raise ValueError(
            "--encoder: must be a BERT-format checkpoint with --data DIR, got tiny, which knows "
            "the words of the built-in corpus alone"
        )
    asked = [] if options.epochs is None else [f"epochs={options.epochs}"]
    asked += options.set
    found = find_all(options.recipes or SIDE_BY_SIDE)
    recipes = [override(recipe, [*_settings(encoder, recipe), *asked]) for recipe in found]
    for recipe, _ in recipes:
        check_runnable(recipe)
    device = _device(options.device)
    _set_threads(options.threads or (1 if encoder == "tiny" else None))
    tasks = list(dict.fromkeys(task for recipe, _ in recipes for task in recipe.tasks))
    corpus = load_corpus(options.data, tasks)
    make_encoder(encoder, recipes[0][0])  # a checkpoint that cannot be used is refused here
    tokenized: dict[Any, Any] = {}
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
                "device": str(device),
                "precision": options.precision,
                "command": ["python", "-m", "benchmarks.multitask_bert", *given],
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
                config=config,
            )
            _check_folder(plan, resume=options.resume)
            plans.append(plan)
    return plans


def _settings(encoder: str, recipe: Recipe) -> list[str]:
    if encoder != "tiny":
        return []
    from benchmarks.multitask_bert.scratch import settings

    return settings(recipe)


def _device(name: str | None) -> torch.device:
    import torch

    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(
            f"--device: must be one that this machine has, got {name} ({_one_line(error)})"
        ) from error
    return device


def _set_threads(number: int | None) -> None:
    import torch

    if number is not None:
        torch.set_num_threads(number)


def _check_folder(plan: Plan, *, resume: bool) -> None:
    """Refuses a folder with another run in it, or with one that nobody asked to go on with."""
    from benchmarks.multitask_bert.record import Record, RecordError

    record = Record(plan.folder)
    if not record.exists:
        return
    if not (resume or record.is_complete):
        raise RecordError(
            f"{plan.folder}: must be free or hold a complete run, found an unfinished one; add "
            "--resume to go on with it, or choose another --out"
        )
    before = record.read_json("config.json")
    decisive = set(plan.config) - {"command", "device", "version", "data_notice"}
    different = sorted(key for key in decisive if before.get(key) != plan.config[key])
    if different:
        raise RecordError(
            f"{plan.folder}: must be a run of the same {', '.join(different)}, found another; give "
            "the arguments it was started with, or choose another --out"
        )


def _is_complete(plan: Plan) -> bool:
    from benchmarks.multitask_bert.record import Record

    return Record(plan.folder).is_complete


def _one_line(error: BaseException) -> str:
    line = " ".join(str(error).split()) or type(error).__name__
    # What a file holds may be quoted in it: neither pages of it nor a terminal's commands.
    line = "".join(character if character.isprintable() else "?" for character in line)
    return line if len(line) <= 1200 else f"{line[:900]} ... {line[-200:]}"


if __name__ == "__main__":
    sys.exit(main())
