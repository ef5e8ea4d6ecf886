"""Weights from a Gram matrix beside TorchJD's on the same matrices, in turns: what each costs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from benchmarks.multitask_bert.page.markdown import table
from benchmarks.speed.measure import Action, interleaved
from benchmarks.speed.methods import FAMILY, Member, Weighting

NUM_TASKS = (3, 8, 40)
_NUM_MATRICES = 8


def peer(member: Member, example: Tensor) -> Weighting | None:  # [T, T]
    """TorchJD's way to a method; None where there is none, or what it needs is not installed."""
    if member.peer is None:
        return None
    try:
        made = member.peer(len(example))
        made(example)
    except (ImportError, NameError):  # the second where it was imported without
        return None
    return made


def compare(num_tasks: Sequence[int] = NUM_TASKS, *, rounds: int, seed: int = 0) -> list[str]:
    """Times every method; the lines of a table.

    Args:
        num_tasks: sizes T of the matrices, which are those of random gradients.
        rounds: how often every action is timed.
        seed: of the gradients.
    """
    lines = []
    for member in FAMILY.values():
        for size in num_tasks:
            generator = torch.Generator().manual_seed(seed)
            rows = torch.randn(
                _NUM_MATRICES, size, 3 * size + 5, generator=generator, dtype=torch.float64
            )
            grams = rows @ rows.mT
            shown = torch.linalg.cholesky(grams) if member.of_rows else grams
            theirs = peer(member, shown[0])
            actions = {"ours": _over(list(grams), member.weights)}
            if theirs is not None:
                actions["theirs"] = _over(list(shown), theirs)
            times = interleaved(actions, rounds=rounds)
            line = [member.title, str(size), f"{times.of('ours').scaled(1e3 / len(grams)):.3f}"]
            if theirs is None:
                line += ["none" if member.peer is None else "not installed", ""]
            else:
                line.append(f"{times.of('theirs').scaled(1e3 / len(grams)):.3f}")
                line.append(f"{times.ratio('ours', to='theirs'):.2f}")
            lines.append(line)
    return table(["method", "T", "here, ms", "TorchJD, ms", "here / TorchJD"], lines)


def _over(grams: Sequence[Tensor], weights_of: Weighting) -> Action:
    def run() -> None:
        for gram in grams:
            weights_of(gram)

    return Action(run)
