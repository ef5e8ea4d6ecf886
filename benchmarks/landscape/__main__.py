"""The command line: pictures, a table of where every method ends, and the page of methods."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.landscape import figures
from benchmarks.landscape.page import NEAR, page
from benchmarks.landscape.paths import (
    ARROWS,
    LR,
    NUM_STEPS,
    STARTS,
    Trail,
    follow,
    titles,
    update_of,
)
from benchmarks.multitask_bert.page.markdown import table

# For the first figure of the documentation; the other has all.
CHOSEN = ("loss-sum", "pcgrad", "mgda", "upgrad")


def main(arguments: Sequence[str] | None = None) -> int:
    """Draws and prints; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.landscape",
        description="Paths of every method over two losses with deep valleys, after figure 1 of "
        "Yu et al. 2020, and what each makes of two and of three arrows.",
    )
    parser.add_argument("--out", type=Path, default=Path("runs/landscape"), metavar="DIR",
                        help="default runs/landscape; docs/static has the site's")  # fmt: skip
    parser.add_argument("--steps", type=int, default=NUM_STEPS, metavar="N",
                        help=f"default {NUM_STEPS}")  # fmt: skip
    parser.add_argument("--page", type=Path, metavar="FILE",
                        help="write the page of all methods too")  # fmt: skip
    options = parser.parse_args(arguments)
    if options.steps < 1:
        print(f"error: steps: must be at least 1, got {options.steps}", file=sys.stderr)
        return 2
    torch.set_num_threads(1)
    names = titles()
    trails = {name: [follow(name, start, options.steps) for start in STARTS] for name in names}
    updates = {
        name: {group: update_of(name, arrows) for group, arrows in ARROWS.items()} for name in names
    }
    out: Path = options.out
    (out / "methods").mkdir(parents=True, exist_ok=True)
    by_title = {names[name]: found for name, found in trails.items()}
    chosen = {names[name]: trails[name] for name in CHOSEN}
    figures.draw_landscape(chosen, out / "landscape.png", 3)
    figures.draw_landscape(by_title, out / "landscapes.png")
    figures.draw_arrows({names[name]: made for name, made in updates.items()}, out / "arrows.png")
    for name in names:
        figures.draw_method(trails[name], updates[name], out / "methods" / f"{name}.png")
    lines = "\n".join(ends(by_title))
    if options.page is not None:
        options.page.write_text(page(trails, lines), encoding="utf-8")
    print(lines)
    print(f"Adam, lr {LR}, {options.steps} steps; wrote the pictures to {out}")
    return 0


def ends(trails: dict[str, list[Trail]]) -> list[str]:
    """Draws the table: both losses at the end from each start, and how many ends are a crossing.

    Example:
        >>> print(ends({"loss sum": [Trail([(0.0, 0.05)], (0.4, 0.7))]})[2])
        | loss sum | 0.40, 0.70 | 1 of 1          |
    """
    lines = []
    for title, found in trails.items():
        near = sum(trail.distance < NEAR for trail in found)
        cells = [f"{trail.losses[0]:.2f}, {trail.losses[1]:.2f}" for trail in found]
        lines.append([title, *cells, f"{near} of {len(found)}"])
    starts = [f"from ({x:g}, {y:g})" for x, y in STARTS[: len(next(iter(trails.values())))]]
    return table(["method", *starts, "at a crossing"], lines)


if __name__ == "__main__":
    sys.exit(main())
