"""The command line: `table`, `kernels`, `capture`, `adamw`, `weights` and `trainer`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch

from benchmarks.multitask_bert.page.markdown import table as draw_table
from benchmarks.speed import adamw, capture, frozen, kernels, table, trainer, weights
from benchmarks.speed.machine import describe
from benchmarks.speed.targets import Settings
from benchmarks.speed.workloads import BERT_BASE, MINILM, TINY, make_bert

REFUSED = 2

_EPILOG = """\
examples:
  table                                       the targets on this CPU
  table --rows step torchjd --threads 2       two of its rows
  table --device cuda                         the targets on a GPU
  table --data DIR --encoder DIR              with the trainer's rows
  kernels --out runs/speed                    kernels.csv and kernels.png
Each takes --quick: tiny sizes, to see whether it runs.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit status."""
    options = _parser().parse_args(arguments)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    command: Callable[[argparse.Namespace], None] = options.command
    try:
        if options.device == "cuda" and not torch.cuda.is_available() and options.name != "table":
            raise ValueError("device: must be cpu here, because torch finds no CUDA device")
        command(options)
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return REFUSED
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.speed",
        description="What gradient surgery costs, beside its peers and the machine's floor.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for name, command, text in (
        ("table", _table, "the performance table: every target, measured and judged"),
        ("kernels", _kernels, "the parts of surgery over T and P: CSV and plot"),
        ("capture", _capture, "three ways to keep each task's gradient: time and memory"),
        ("adamw", _adamw, "combining inside AdamW's update, and before it: time and memory"),
        ("weights", _weights, "every method's weights from a Gram matrix, beside TorchJD's"),
        (
            "trainer",
            _trainer,
            "the trainer beside a plain loop over transformers, and above frozen layers",
        ),
    ):
        sub = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        sub.set_defaults(command=command, name=name)
        sub.add_argument("--threads", type=_positive, metavar="N", help="of torch; default: its")
        sub.add_argument("--rounds", type=_positive, default=7, metavar="N", help="default 7")
        sub.add_argument("--seed", type=int, default=0, metavar="S", help="default 0")
        sub.add_argument("--quick", action="store_true", help="tiny sizes, to see whether it runs")
        if name not in ("adamw", "trainer"):
            sub.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="default cpu")
        else:
            sub.set_defaults(device="cpu")
        if name == "table":
            keys = ", ".join(row.key for row in table.ROWS)
            sub.add_argument("--rows", nargs="+", default=[], metavar="ROW", help=f"of {keys}")
        if name in ("table", "trainer"):
            needed = name == "trainer"
            sub.add_argument("--data", type=Path, required=needed, metavar="DIR",
                             help="folder of the data files")  # fmt: skip
            sub.add_argument("--encoder", type=Path, required=needed, metavar="DIR",
                             help="folder of a BERT-format checkpoint")  # fmt: skip
        if name == "kernels":
            sub.add_argument(
                "--tasks", type=_positive, nargs="+", default=kernels.NUM_TASKS, metavar="T",
                help="default 2 3 8 40",
            )  # fmt: skip
            sub.add_argument(
                "--parameters", type=float, nargs="+", default=kernels.NUM_PARAMETERS, metavar="P",
                help="default 1e5 1e6 1e7 1e8",
            )  # fmt: skip
            sub.add_argument(
                "--out", type=Path, default=Path("runs/speed"), metavar="DIR",
                help="default runs/speed",
            )  # fmt: skip
    return parser


def _settings(options: argparse.Namespace) -> Settings:
    return Settings(
        rounds=options.rounds,
        quick=options.quick,
        data=getattr(options, "data", None),
        encoder=getattr(options, "encoder", None),
        seed=options.seed,
    )


def _table(options: argparse.Namespace) -> None:
    rows = table.choose(options.rows)
    settings = _settings(options)
    found = table.measure(rows, options.device, settings)
    print(table.draw(rows, found, options.device, settings))


def _trainer(options: argparse.Namespace) -> None:
    options.rows = [row.key for row in (*trainer.ROWS, *frozen.ROWS)]
    _table(options)


def _kernels(options: argparse.Namespace) -> None:
    tasks, parameters = options.tasks, [int(number) for number in options.parameters]
    if options.quick:
        tasks, parameters = (2, 3), [1000, 10_000]
    lines = []
    measured = kernels.measure(tasks, parameters, device=options.device, rounds=options.rounds)
    for line in measured:
        lines.append(line)
        print(
            f"T={line['T']} P={line['P']}: surgery {line['surgery_ms']:.3f} ms, "
            f"{line['surgery_per_floor']:.2f} × floor",
            file=sys.stderr,
        )
    about = describe(options.device, [f"{options.rounds} rounds"])
    kernels.write_csv(lines, options.out / "kernels.csv")
    kernels.plot(lines, options.out / "kernels.png", about)
    cells = [[_cell(value) for value in line.values()] for line in lines]
    print("\n".join(draw_table(list(kernels.FIELDS), cells)))
    print(about)
    print(f"wrote {options.out / 'kernels.csv'} and {options.out / 'kernels.png'}")


def _capture(options: argparse.Namespace) -> None:
    config = BERT_BASE if options.device == "cuda" else MINILM
    sizes = (32, 64) if options.device == "cuda" else (16, 48)
    if options.quick:
        config, sizes = TINY, (2, 5)
    make = partial(make_bert, config, *sizes, device=options.device, seed=options.seed)
    print("\n".join(capture.compare(make, rounds=options.rounds)))
    print(describe(options.device, [f"3 × {sizes[0]} × {sizes[1]}", f"{options.rounds} rounds"]))


def _adamw(options: argparse.Namespace) -> None:
    parameters = (1000, 300_000) if options.quick else adamw.NUM_PARAMETERS
    print("\n".join(adamw.compare(parameters, rounds=options.rounds)))
    print(describe(options.device, [f"T={adamw.NUM_TASKS}", f"{options.rounds} rounds"]))


def _weights(options: argparse.Namespace) -> None:
    sizes = (3,) if options.quick else weights.NUM_TASKS
    print(
        "\n".join(
            weights.compare(sizes, rounds=options.rounds, seed=options.seed, device=options.device)
        )
    )
    print(describe(options.device, [f"{options.rounds} rounds"]))


def _cell(value: str | int | float) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {text}")
    return number


if __name__ == "__main__":
    sys.exit(main())
