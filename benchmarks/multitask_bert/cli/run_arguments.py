"""The arguments of the command `run`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

FIRST_SEED = 11711

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
torchrun --nproc-per-node=N -m benchmarks.multitask_bert run ... trains on N processes, which divide
every batch among them.
"""


def add_run(commands: Any) -> None:
    """Adds `run` to the subparsers of a command line."""
    run = commands.add_parser(
        "run",
        help="train and evaluate recipes",
        description="Trains and evaluates recipes.",
        epilog=_RUN_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    run.set_defaults(command="run")
    run.add_argument(
        "recipes",
        nargs="*",
        metavar="RECIPE",
        help="ids from `list` or patterns such as 'benton/*'; default: loss sum and PCGrad side "
        "by side",
    )
    run.add_argument(
        "--recipe",
        action="append",
        default=[],
        type=Path,
        metavar="FILE",
        help="a recipe of your own, as JSON that `list RECIPE --json` prints; may be given more "
        "than once",
    )
    run.add_argument(
        "--data",
        default="synthetic",
        metavar="DIR",
        help="folder with the data files, `synthetic` for the built-in corpus (default), or "
        "`conflict` for three tasks that want opposite things of the same words",
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
        "--max-steps",
        type=_positive,
        metavar="N",
        help="stop a run after N optimizer steps; with --resume and a larger N it goes on",
    )
    run.add_argument(
        "--eval-every",
        type=_positive,
        metavar="N",
        help="dev metrics after every N steps, too, and not at the end of epochs alone; the best "
        "checkpoint is then one of more; recorded as a deviation",
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
        "pairs.sts=joint-sep (`list --fields` has all of them); "
        "recorded as a deviation; may be given more than once",
    )
    run.add_argument("--device", metavar="D", help="cpu, cuda, cuda:1, ...; default: cuda if any")
    run.add_argument(
        "--threads",
        type=_positive,
        metavar="N",
        help="CPU threads; default: torch's, and 1 for the tiny encoder, which has no work for two",
    )
    run.add_argument(
        "--kept-memory",
        type=_gib,
        default=2.0,
        metavar="GIB",
        help="of each process, for the outputs of frozen layers (--set frozen_layers=N); default 2",
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
    run.add_argument(
        "--tensorboard",
        action="store_true",
        help="write what metrics.jsonl has for TensorBoard, too, in the run's tensorboard/",
    )


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


def _gib(text: str) -> float:
    try:
        size = float(text)
    except ValueError:
        size = -1.0
    if not 0 <= size < 1 << 20:
        raise argparse.ArgumentTypeError(f"must be a number of GiB, 0 or more, got {text!r}")
    return size


def _seed(text: str) -> int:
    if not text.isdecimal() or int(text) >= 1 << 32:
        raise argparse.ArgumentTypeError(f"must be a whole number below 2**32, got {text!r}")
    return int(text)
