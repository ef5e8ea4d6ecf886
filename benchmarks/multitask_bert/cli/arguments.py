"""The arguments of the command line, and what it answers with: exit statuses and lines."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any, NoReturn

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
torchrun --nproc-per-node=N -m benchmarks.multitask_bert run ... trains on N processes, which divide
every batch among them.
"""


def num_processes() -> int:
    """How many torchrun has started together with this one."""
    number = os.environ.get("WORLD_SIZE", "1")
    return int(number) if number.isdecimal() else 1


def is_first_process() -> bool:
    """Tells whether this is the one of them that prints."""
    return num_processes() == 1 or os.environ.get("RANK", "0") == "0"


def one_line(error: BaseException) -> str:
    """Writes what an error says in one line that a terminal can show.

    >>> one_line(ValueError("two\\nlines"))
    'two lines'
    """
    line = " ".join(str(error).split()) or type(error).__name__
    # What a file holds may be quoted in it: neither pages of it nor a terminal's commands.
    line = "".join(character if character.isprintable() else "?" for character in line)
    return line if len(line) <= 1200 else f"{line[:900]} ... {line[-200:]}"


class _Parser(argparse.ArgumentParser):
    """Refuses arguments in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(REFUSED, f"error: {message}; see {self.prog} --help\n")

    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
        super().exit(status, message if is_first_process() else None)

    def print_help(self, file: Any = None) -> None:
        if is_first_process():
            super().print_help(file)


def make_parser() -> argparse.ArgumentParser:
    """The arguments of every command; what is parsed names its ``command``."""
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
    run.set_defaults(command="run")
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

    report = commands.add_parser(
        "report",
        help="tables and plots of finished and unfinished runs",
        description="Makes report.md, plots/*.svg, and report.html, a page that needs no other "
        "file, of the run folders below DIR, and prints their summary.",
    )
    report.set_defaults(command="report")
    report.add_argument("directories", nargs="+", type=Path, metavar="DIR")
    report.add_argument(
        "--out", type=Path, metavar="DIR", help="where to write; default: the first DIR"
    )

    report.add_argument(
        "--print", action="store_true", help="print the whole report.md, not its summary"
    )

    analyze = commands.add_parser(
        "analyze",
        help="where finished runs go wrong",
        description="Makes analysis.md, plots/*.svg, and analysis.html, a page that needs no other "
        "file, of each finished run, and comparison.html of those that differ in one setting. "
        "The files quote texts of the data.",
    )
    analyze.set_defaults(command="analyze")
    analyze.add_argument(
        "runs", nargs="+", type=Path, metavar="RUN", help="run folders, or folders that hold them"
    )
    analyze.add_argument(
        "--data", metavar="DIR", help="where the runs' data are now; default: where they were"
    )
    analyze.add_argument(
        "--out", type=Path, metavar="DIR", help="where to write; default: each run's own folder"
    )
    analyze.add_argument(
        "--print", action="store_true", help="print every analysis.md, not their summary"
    )

    predict = commands.add_parser(
        "predict",
        help="prediction files in the starter code's form",
        description="Writes the dev and test predictions of a finished run, in the form that the "
        "starter code hands in.",
    )
    predict.set_defaults(command="predict")
    predict.add_argument("run", type=Path, metavar="RUN", help="a run folder")
    predict.add_argument(
        "--data", metavar="DIR", help="where the data are; default: where the run had them"
    )
    predict.add_argument(
        "--out", type=Path, metavar="DIR", help="default: the run folder's predictions/"
    )
    predict.add_argument(
        "--split",
        choices=("dev", "test"),
        help="that one alone; default: both, without the test files that the data lack",
    )

    listing = commands.add_parser(
        "list", help="every recipe with one line", description="Lists every recipe."
    )
    listing.set_defaults(command="list")
    listing.add_argument(
        "--long", action="store_true", help="with the fields that its report does not state"
    )

    fetching = commands.add_parser(
        "fetch",
        help="download the public data files",
        description="Downloads the data files that DIR does not have yet; run it again to go on.",
    )
    fetching.set_defaults(command="fetch")
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
