"""The command line: one table of relative errors, on the standard output."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from benchmarks.accuracy.compare import NUM_TASKS, draw, measure
from benchmarks.accuracy.peers import described
from benchmarks.speed.machine import describe


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures and prints; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.accuracy",
        description="Relative error of every method's update against 80 digits: worst (median) "
        "over sizes and seeds, beside TorchJD's and LibMTL's where they are installed.",
    )
    parser.add_argument("--tasks", type=int, nargs="+", default=NUM_TASKS, metavar="T",
                        help="sizes, default 2 3 5 8 16 40")  # fmt: skip
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="of each, default 3")
    parser.add_argument("--quick", action="store_true", help="two and three tasks, one seed")
    options = parser.parse_args(arguments)
    if min(options.tasks) < 2 or options.seeds < 1:
        print(
            "error: tasks: must be at least 2, and seeds at least 1, got "
            f"{min(options.tasks)} and {options.seeds}",
            file=sys.stderr,
        )
        return 2
    tasks, seeds = ((2, 3), 1) if options.quick else (tuple(options.tasks), options.seeds)
    print("\n".join(draw(measure(tasks, range(seeds)))))
    sizes = ", ".join(map(str, tasks))
    print(describe("cpu", [f"T of {sizes}", f"{seeds} seeds", f"LibMTL {described('LibMTL')}"]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
