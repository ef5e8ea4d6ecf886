"""A row a method: its update here, its exact weights, and the peers' classes for it."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from benchmarks.accuracy import exact
from gradsurgery import (
    aligned_mtl_weights,
    cagrad_weights,
    config_weights,
    dbmtl_weights,
    dualproj_weights,
    fairgrad_weights,
    gradvac_weights,
    imtl_g_weights,
    mgda_weights,
    nash_mtl_weights,
    pcgrad_weights,
    sdmgrad_weights,
    upgrad_weights,
)

Weigh = Callable[[Tensor], Tensor]  # [T, T] -> [T]
Draw = Callable[[int], list[list[int]]]  # T to [T, T]
ALPHA = 2.0
_TARGET = 0.25
_NOTHING = 1e-18  # of the mean length: an update of zero
_SEED = 0


@dataclass(frozen=True)
class Peer:
    """A peer's class, and how its answer becomes comparable.

    Args:
        name: of the class.
        options: what it is given.
        times_tasks: it means the mean where the method here means the sum.
        orders: draws the visiting orders that it is going to draw; by default TorchJD's.
    """

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    times_tasks: bool = False
    orders: Draw | None = None


@dataclass(frozen=True)
class Row:
    """A method and the length in which its errors are counted.

    Args:
        title: as the table calls it.
        weigh: Gram matrix and visiting orders to weights, here.
        exact: rows and visiting orders to weights in 80 digits.
        unit: rows and exact update to a length.
        torchjd, libmtl: the peers' classes.
    """

    title: str
    weigh: Callable[[Tensor, list[list[int]]], Tensor]
    exact: Callable[[Tensor, list[list[int]]], Sequence[Any]]
    unit: Callable[[Tensor, Tensor], Tensor]
    torchjd: Peer | None = None
    libmtl: Peer | None = None


def by_torch(num_tasks: int) -> list[list[int]]:
    """Draws orders as TorchJD does, and puts the generator back."""
    torch.manual_seed(_SEED)
    orders: list[list[int]] = [torch.randperm(num_tasks).tolist() for _ in range(num_tasks)]
    torch.manual_seed(_SEED)
    return orders


def by_python(num_tasks: int) -> list[list[int]]:
    """Draws orders as LibMTL does, and puts the generator back."""
    random.seed(_SEED)
    orders = [list(range(num_tasks)) for _ in range(num_tasks)]
    for order in orders:
        random.shuffle(order)
    random.seed(_SEED)
    return orders


def _lengths(rows: Tensor) -> Tensor:  # [..., P] -> [...]
    found: Tensor = torch.linalg.vector_norm(rows, dim=-1)
    return found


def _shortest(rows: Tensor, update: Tensor) -> Tensor:
    return _lengths(rows).min()


def _mean_length(rows: Tensor, update: Tensor) -> Tensor:
    return _lengths(rows).mean()


def _mean_gradient(rows: Tensor, update: Tensor) -> Tensor:
    return _lengths(rows.mean(0))


def _own(rows: Tensor, update: Tensor) -> Tensor:
    length, usual = _lengths(update), _mean_length(rows, update)
    return torch.where(length <= _NOTHING * usual, usual, length)


def _row(
    title: str,
    weigh: Weigh,
    solve: Callable[[Tensor], Sequence[Any]],
    unit: Callable[[Tensor, Tensor], Tensor] = _own,
    torchjd: Peer | None = None,
    libmtl: Peer | None = None,
) -> Row:
    """Makes the row of a method that visits nobody."""
    return Row(
        title, lambda gram, _: weigh(gram), lambda rows, _: solve(rows), unit, torchjd, libmtl
    )


def _losses(num_tasks: int) -> list[float]:
    return [float(task + 1) for task in range(num_tasks)]


def _gradvac(gram: Tensor, orders: list[list[int]]) -> Tensor:
    targets = torch.full_like(gram, _TARGET)
    weights, _ = gradvac_weights(gram, targets, torch.tensor(orders))
    return weights


ROWS = (
    _row("MGDA", mgda_weights, exact.mgda, _shortest, Peer("MGDAWeighting"),
         Peer("MGDA", {"mgda_gn": "none"})),
    _row("UPGrad", upgrad_weights, exact.upgrad, _mean_length, Peer("UPGradWeighting")),
    _row("DualProj", dualproj_weights, exact.dualproj, _mean_length, Peer("DualProjWeighting")),
    _row("CAGrad", cagrad_weights, exact.cagrad, _mean_gradient,
         Peer("CAGradWeighting", {"c": 0.4}), Peer("CAGrad", {"calpha": 0.4, "rescale": 0})),
    _row("SDMGrad", sdmgrad_weights, exact.sdmgrad, _mean_gradient, Peer("SDMGradWeighting")),
    _row("Nash-MTL", nash_mtl_weights, exact.fairgrad, _own, Peer("NashMTL", {"max_norm": 0.0})),
    _row("FairGrad at 2", lambda gram: fairgrad_weights(gram, ALPHA),
         lambda rows: exact.fairgrad(rows, ALPHA), _own,
         Peer("FairGradWeighting", {"alpha": ALPHA})),
    _row("IMTL-G", imtl_g_weights, exact.imtl_g, _own, Peer("IMTLGWeighting"), Peer("IMTL")),
    _row("ConFIG", config_weights, exact.config, _own, Peer("ConFIG")),
    _row("Aligned-MTL", aligned_mtl_weights, exact.aligned_mtl, _own,
         Peer("AlignedMTLWeighting", times_tasks=True)),
    Row("PCGrad", lambda gram, orders: pcgrad_weights(gram, torch.tensor(orders)),
        exact.pcgrad, _own, Peer("PCGradWeighting"),
        Peer("PCGrad", orders=by_python)),
    Row("GradVac", _gradvac, lambda rows, orders: exact.gradvac(rows, orders, _TARGET), _own),
    _row("DB-MTL", lambda gram: dbmtl_weights(gram, torch.tensor(_losses(len(gram)))),
         lambda rows: exact.dbmtl(rows, _losses(len(rows))), _own),
)  # fmt: skip
