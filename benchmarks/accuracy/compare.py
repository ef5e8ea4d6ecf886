"""Relative errors of updates, and the table of them."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from functools import cache, partial
from statistics import median

import torch
from torch import Tensor

from benchmarks.accuracy import exact
from benchmarks.accuracy.families import families
from benchmarks.accuracy.methods import ROWS, Draw, Row, by_torch
from benchmarks.accuracy.peers import NotInstalledError, libmtl_update, torchjd_update
from benchmarks.multitask_bert.page.markdown import table

NUM_TASKS = (2, 3, 5, 8, 16, 40)
FAMILIES = {
    "random": "random",
    "conflict": "nearly stationary",
    "rank-deficient": "rank-deficient",
    "collinear": "collinear",
    "opposite": "opposite",
    "scaled": "scaled by 1e±8",
}
WHOSE = ("here", "TorchJD", "LibMTL")
NOTHING = "\N{EN DASH}"

Errors = dict[tuple[str, str, str], list[float]]  # method, whose, family


def right_update(row: Row, rows: Tensor, orders: list[list[int]]) -> Tensor | None:  # [P]
    """Gives the exact update as float64, or None where none exists or none is certain."""
    try:
        weights = row.exact(rows, orders)
    except exact.UncertainError:
        return None
    return torch.tensor(exact.update_of(weights, rows), dtype=torch.float64)


def measure(num_tasks: Iterable[int], seeds: Iterable[int]) -> Errors:
    """Measures every method on every family.

    An error is infinite where a peer gave no finite answer. There is none where the peer is not
    installed, or where no answer is right.
    """
    errors: Errors = defaultdict(list)
    for size in num_tasks:
        for seed in seeds:
            found = families(size, seed)
            for family in FAMILIES:
                for row in ROWS:
                    _measure(row, family, found[family], errors)
    return errors


def _measure(row: Row, family: str, rows: Tensor, errors: Errors) -> None:
    orders_of = cache(lambda draw: draw(len(rows)))
    right_for = cache(lambda draw: right_update(row, rows, orders_of(draw)))

    def add(whose: str, draw: Draw, give: Callable[[], Tensor]) -> None:
        right = right_for(draw)
        if right is None:
            return
        draw(len(rows))  # puts the generators where the orders were drawn
        try:
            error = ((give() - right).norm() / row.unit(rows, right)).item()
        except NotInstalledError:
            return
        except Exception:  # a peer that gives up has no answer, whatever it raises
            if whose == WHOSE[0]:
                raise
            error = math.inf
        errors[row.title, whose, family].append(error if math.isfinite(error) else math.inf)

    def ours() -> Tensor:
        return row.weigh(rows @ rows.mT, orders_of(by_torch)) @ rows

    add(WHOSE[0], by_torch, ours)
    if row.torchjd is not None:
        add(WHOSE[1], by_torch, partial(torchjd_update, row.torchjd, rows))
    if row.libmtl is not None:
        add(WHOSE[2], row.libmtl.orders or by_torch, partial(libmtl_update, row.libmtl, rows))


def draw(errors: Errors) -> list[str]:
    """Draws the table: worst and, in brackets, median over sizes and seeds."""
    lines = []
    for row in ROWS:
        for whose, is_there in zip(WHOSE, (True, row.torchjd, row.libmtl), strict=True):
            cells = [_cell(errors.get((row.title, whose, family), [])) for family in FAMILIES]
            if is_there:
                lines.append([row.title, whose, *cells])
    return table(["method", "", *FAMILIES.values()], lines)


def _cell(errors: Sequence[float]) -> str:
    """Writes worst and median of the answers, after how many they are where some are missing.

    Example:
        >>> _cell([1e-15, 3e-15, 2e-14])
        '2e-14 (3e-15)'
        >>> _cell([1e-4, math.inf, math.inf])
        '1 of 3: 1e-04 (1e-04)'
    """
    if not errors:
        return NOTHING
    given = [error for error in errors if math.isfinite(error)]
    if not given:
        return "no answer"
    cell = f"{_number(max(given))} ({_number(median(given))})"
    return cell if len(given) == len(errors) else f"{len(given)} of {len(errors)}: {cell}"


def _number(error: float) -> str:
    """Writes one digit of it.

    Example:
        >>> [_number(error) for error in (0.0, 2.6e-15, 0.31)]
        ['0', '3e-15', '0.3']
    """
    if error == 0:
        return "0"
    return f"{error:.1g}" if 0.05 <= error < 10 else f"{error:.0e}"
