"""The arguments of the command line, and what it answers with: exit statuses and lines."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any, NoReturn

from benchmarks.multitask_bert.cli.run_arguments import add_run

FAILED = 1
REFUSED = 2
INTERRUPTED = 130


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

    add_run(commands)

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
        description="Writes the dev and test predictions of finished runs, in the form that the "
        "starter code hands in, of all the data files that are there, and names the others.",
    )
    predict.set_defaults(command="predict")
    _add_run_and_data(predict)
    predict.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="default: the run's hand-in/; of several runs each gets a folder of its own in it",
    )
    predict.add_argument("--split", choices=("dev", "test"), help="that one alone; default: both")

    evaluate = commands.add_parser(
        "evaluate",
        help="metrics of a finished run on any labelled rows",
        description="Prints the metrics of finished runs on the rows of DIR that have a label, "
        "each with the 95 % interval that the choice of these rows puts on it.",
    )
    evaluate.set_defaults(command="evaluate")
    _add_run_and_data(evaluate)
    evaluate.add_argument(
        "--split",
        choices=("train", "dev", "test"),
        default="dev",
        help="whose files in DIR, test files with labels too; default: dev",
    )

    listing = commands.add_parser(
        "list",
        help="every recipe with one line, or the fields of recipes",
        description="Lists every recipe, or every field that `run --set` takes.",
    )
    listing.set_defaults(command="list")
    listing.add_argument(
        "recipes", nargs="*", metavar="RECIPE", help="ids or patterns; default: every recipe"
    )
    form = listing.add_mutually_exclusive_group()
    form.add_argument(
        "--long", action="store_true", help="with the fields that its report does not state"
    )
    form.add_argument(
        "--json", action="store_true", help="one recipe as a file for `run --recipe` to begin with"
    )
    form.add_argument(
        "--fields", action="store_true", help="the fields of `run --set`, each with an example"
    )

    fetching = commands.add_parser(
        "fetch",
        help="download the public data files",
        description="Downloads the data files that DIR does not have yet; run it again to go on.",
    )
    fetching.set_defaults(command="fetch")
    fetching.add_argument("directory", type=Path, metavar="DIR")
    return parser


def _add_run_and_data(command: argparse.ArgumentParser) -> None:
    """Adds what is said to commands that ask a trained model."""
    command.add_argument(
        "run", type=Path, metavar="RUN", help="a run folder, or a folder that holds some"
    )
    command.add_argument(
        "--data", metavar="DIR", help="where the data are; default: where the run had them"
    )
    command.add_argument(
        "--tasks",
        type=lambda text: text.split(","),
        metavar="TASK,...",
        help="these alone, such as sst,sts; default: the run's",
    )
