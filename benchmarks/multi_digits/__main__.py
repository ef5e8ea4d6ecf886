"""The command line: `run` trains what is missing and reports; `report` draws the page again."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.multi_digits import report
from benchmarks.multi_digits.study import BASELINE, CAPACITIES, NOISES, Record, Study, carry_out
from benchmarks.multitask_bert.methods import METHODS
from benchmarks.speed.machine import describe

REFUSED = 2
_UNTRAINED = "none"

_EPILOG = """\
examples:
  run                                               every method, 30 seeds, the small network
  run --methods pcgrad --channels 4 12 --noise 0 0.3     does PCGrad help? four settings
A study that was stopped goes on where it stopped.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit status."""
    options = _parser().parse_args(arguments)
    try:
        record = Record(options.out / "outcomes.jsonl")
        if options.command == "run":
            carry_out(_study(options), record, options.processes)
        found = report.sections(record.outcomes.values())
        if not found:
            raise ValueError(f"{record.path}: must hold outcomes, found none; start with `run`")
        paths = report.write(found, options.out, describe("cpu", ["1 thread a process"]))
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return REFUSED
    print(*report.summary(found), *map(str, paths), sep="\n")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.multi_digits",
        description="Two overlaid digits, a task each: every method at equal budget.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, text in (("run", "train what is missing, then report"), ("report", "report")):
        sub = commands.add_parser(name, help=text)
        sub.add_argument("--out", type=Path, default=Path("runs/multi_digits"), metavar="DIR",
                         help="of the record and the page, default runs/multi_digits")  # fmt: skip
        if name == "run":
            sub.add_argument("--methods", nargs="+", default=[*_trained()], metavar="NAME",
                             help="default: all; the loss sum always")  # fmt: skip
            sub.add_argument("--seeds", type=int, default=30, metavar="N", help="default 30")
            sub.add_argument("--tuning-seeds", type=int, default=3, metavar="N",
                             help="for the learning rates, default 3")  # fmt: skip
            sub.add_argument("--channels", type=int, nargs="+", default=CAPACITIES[:1], metavar="C",
                             help="capacities, default 4")  # fmt: skip
            sub.add_argument("--noise", type=float, nargs="+", default=NOISES[:1], metavar="X",
                             help="shares of random labels, default 0")  # fmt: skip
            sub.add_argument("--images", type=int, default=Study.num_images, metavar="N",
                             help=f"for training, default {Study.num_images}")  # fmt: skip
            sub.add_argument("--processes", type=int, default=2, metavar="N", help="default 2")
    return parser


def _trained() -> list[str]:
    return [name for name in METHODS if name != _UNTRAINED]


def _study(options: argparse.Namespace) -> Study:
    unknown = [name for name in options.methods if name not in _trained()]
    if unknown:
        raise ValueError(f"--methods: must be of {', '.join(_trained())}, got {', '.join(unknown)}")
    for name in ("seeds", "tuning_seeds", "images", "processes", "channels"):
        found = getattr(options, name)
        if min(found if isinstance(found, list | tuple) else [found]) < 1:
            raise ValueError(f"--{name.replace('_', '-')}: must be at least 1, got {found}")
    if not all(0 <= noise < 1 for noise in options.noise):
        raise ValueError(f"--noise: must be from 0 to less than 1, got {options.noise}")
    methods = dict.fromkeys((BASELINE, *options.methods))
    return Study(
        tuple(methods),
        options.seeds,
        options.tuning_seeds,
        tuple(options.channels),
        tuple(options.noise),
        options.images,
    )


if __name__ == "__main__":
    sys.exit(main())
