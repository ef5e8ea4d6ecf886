"""Weights from a Gram matrix beside those of TorchJD, in turns: what each costs and launches."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from benchmarks.multitask_bert.page.markdown import table
from benchmarks.speed.launches import count_launches, count_waits
from benchmarks.speed.measure import Action, interleaved
from gradsurgery import (
    aligned_mtl_weights,
    cagrad_weights,
    dualproj_weights,
    fairgrad_weights,
    imtl_g_weights,
    mgda_weights,
    sdmgrad_weights,
    upgrad_weights,
)

NUM_TASKS = (3, 8, 40)
_NUM_MATRICES = 8
_NOT_INSTALLED = "not installed"

Weighting = Callable[[Tensor], Tensor]  # [T, T] -> [T]

OURS: dict[str, Weighting] = {
    "MGDA": mgda_weights,
    "UPGrad": upgrad_weights,
    "DualProj": dualproj_weights,
    "CAGrad": cagrad_weights,
    "FairGrad at 2": lambda gram: fairgrad_weights(gram, 2.0),
    "SDMGrad": sdmgrad_weights,
    "IMTL-G": imtl_g_weights,
    "Aligned-MTL": aligned_mtl_weights,
}
_PEERS: dict[str, tuple[str, dict[str, float]]] = {
    "MGDA": ("MGDAWeighting", {}),
    "UPGrad": ("UPGradWeighting", {}),
    "DualProj": ("DualProjWeighting", {}),
    "CAGrad": ("CAGradWeighting", {"c": 0.4}),
    "FairGrad at 2": ("FairGradWeighting", {"alpha": 2.0}),
    "SDMGrad": ("SDMGradWeighting", {}),
    "IMTL-G": ("IMTLGWeighting", {}),
    "Aligned-MTL": ("AlignedMTLWeighting", {}),
}


def peer(name: str) -> Weighting | None:
    """TorchJD's weighting of a method; None where it, or what it needs, is not installed."""
    kind, options = _PEERS[name]
    try:
        made: Weighting = getattr(importlib.import_module("torchjd.aggregation"), kind)(**options)
    except ImportError:
        return None
    return made


def compare(
    num_tasks: Sequence[int] = NUM_TASKS, *, rounds: int, seed: int = 0, device: str = "cpu"
) -> list[str]:
    """Times every method, and counts what it launches; the lines of a table.

    Args:
        num_tasks: sizes T of the matrices, which are those of random gradients.
        rounds: how often every action is timed.
        seed: of the gradients.
        device: where the matrices are; on CUDA, how often a method waits for it is counted too.
    """
    is_cuda = torch.device(device).type == "cuda"
    lines = []
    for name, ours in OURS.items():
        theirs = peer(name)
        for size in num_tasks:
            generator = torch.Generator().manual_seed(seed)
            rows = torch.randn(
                _NUM_MATRICES, size, 3 * size + 5, generator=generator, dtype=torch.float64
            )
            grams = list((rows @ rows.mT).to(device))
            actions = {"ours": _over(grams, ours)}
            why = _NOT_INSTALLED if theirs is None else _failure(theirs, grams[0])
            if theirs is not None and not why:
                actions["theirs"] = _over(grams, theirs)
            times = interleaved(actions, rounds=rounds, device=device)
            line = [name, str(size), f"{times.of('ours').scaled(1e3 / len(grams)):.3f}"]
            if why:
                line += [why, ""]
            else:
                line.append(f"{times.of('theirs').scaled(1e3 / len(grams)):.3f}")
                line.append(f"{times.ratio('ours', to='theirs'):.2f}")
            once = partial(ours, grams[0])
            line.append(str(count_launches(once, device)))
            if is_cuda:
                line.append(str(count_waits(once)))
            lines.append(line)
    counted = ["kernels here", "waits here"] if is_cuda else ["operators here"]
    return table(["method", "T", "here, ms", "TorchJD, ms", "here / TorchJD", *counted], lines)


def _failure(weights_of: Weighting, gram: Tensor) -> str:
    """Says why a peer cannot weigh a matrix where it lies; "" where it can."""
    try:
        weights_of(gram)
    except (RuntimeError, TypeError, ValueError) as error:
        return f"failed: {' '.join(str(error).split())[:60]}"
    return ""


def _over(grams: Sequence[Tensor], weights_of: Weighting) -> Action:
    def run() -> None:
        for gram in grams:
            weights_of(gram)

    return Action(run)
